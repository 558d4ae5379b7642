"""Which data sets can be opened by a short name: plain data, importable without torch."""

SOURCES: dict[str, str] = {
    "digits": "limbeck.data.digits:digits",
    "folder": "limbeck.data.folder:folder",
    "huggingface": "limbeck.data.huggingface_sets:huggingface",
    "npz": "limbeck.data.npz:npz",
    "torchvision": "limbeck.data.torchvision_sets:torchvision",
    "bccd": "limbeck.data.boxes:bccd",
    "coco": "limbeck.data.coco:coco",
    "digit_boxes": "limbeck.data.boxes:digit_boxes",
    "camvid": "limbeck.data.masks:camvid",
    "digit_masks": "limbeck.data.masks:digit_masks",
    "mask_folder": "limbeck.data.masks:mask_folder",
    "shakespeare": "limbeck.data.text:shakespeare",
    "gsm8k": "limbeck.data.text:gsm8k",
    "descriptions": "limbeck.data.text:descriptions",
    "instructions": "limbeck.data.instructions:instructions",
    "sick": "limbeck.data.pair_sources:sick",
    "stsb": "limbeck.data.pair_sources:stsb",
    "description_pairs": "limbeck.data.pair_sources:description_pairs",
    "points": "limbeck.data.points:points",
    "corruptions": "limbeck.data.corrupted:corruptions",
    "clients": "limbeck.data.clients:clients",
    "variant": "limbeck.data.variant:variant",
    "synthetic": "limbeck.data.synthetic:synthetic",
    "open_set": "limbeck.data.open_set:open_set",
    "inaturalist": "limbeck.data.inaturalist:inaturalist",
    "meta_images": "limbeck.data.meta_images:meta_images",
    "class_mismatch": "limbeck.data.class_mismatch:class_mismatch",
    "adult": "limbeck.data.table_sources:adult",
    "magic": "limbeck.data.table_sources:magic",
    "breast_cancer": "limbeck.data.table_sources:breast_cancer",
    "instance_bags": "limbeck.data.instance_bags:instance_bags",
}
"""Short name -> ``module:function``.

A function that takes a ``seed`` makes its own splits and returns the :class:`limbeck.data.data.Data` of a run; any
other returns a :class:`limbeck.data.samples.Source`, which :class:`limbeck.data.splits.Split` divides.
"""
