"""Which models can be built by a short name: plain data, importable without torch."""

BUILDERS: dict[str, str] = {
    "cnn": "limbeck.models.small:cnn",
    "mlp": "limbeck.models.small:mlp",
    "resnet": "limbeck.models.resnet:resnet",
    "wide_resnet": "limbeck.models.resnet:wide_resnet",
    "preact_resnet18": "limbeck.models.resnet:preact_resnet18",
    "timm": "limbeck.models.timm_models:timm",
    "torchvision": "limbeck.models.torchvision_models:torchvision",
    "folder": "limbeck.models.folder:folder",
    "hub": "limbeck.models.folder:hub",
}
