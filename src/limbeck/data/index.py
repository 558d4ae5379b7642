"""Which data sets can be opened by a short name: plain data, importable without torch."""

SOURCES: dict[str, str] = {
    "digits": "limbeck.data.digits:digits",
    "folder": "limbeck.data.folder:folder",
    "huggingface": "limbeck.data.huggingface_sets:huggingface",
    "npz": "limbeck.data.npz:npz",
    "torchvision": "limbeck.data.torchvision_sets:torchvision",
}
"""Short name -> ``module:function``; every function returns a :class:`limbeck.data.samples.Source`."""
