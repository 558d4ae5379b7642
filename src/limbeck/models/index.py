"""Which models can be built by a short name: plain data, importable without torch."""

BUILDERS: dict[str, str] = {
    "cnn": "limbeck.models.small:cnn",
    "mlp": "limbeck.models.small:mlp",
    "vgg": "limbeck.models.small:vgg",
    "resnet": "limbeck.models.resnet:resnet",
    "wide_resnet": "limbeck.models.resnet:wide_resnet",
    "preact_resnet18": "limbeck.models.resnet:preact_resnet18",
    "timm": "limbeck.models.timm_models:timm",
    "torchvision": "limbeck.models.torchvision_models:torchvision",
    "joint_classifier": "limbeck.models.joint_classifier:joint_classifier",
    "projector": "limbeck.models.projector:projector",
    "faster_rcnn": "limbeck.models.detector:faster_rcnn",
    "unet_segmenter": "limbeck.models.segmenter:unet_segmenter",
    "torchvision_segmenter": "limbeck.models.segmenter:torchvision_segmenter",
    "gpt": "limbeck.models.causal_lm:gpt",
    "transformers_lm": "limbeck.models.causal_lm:transformers_lm",
    "bi_encoder": "limbeck.models.text_encoder:bi_encoder",
    "cross_encoder": "limbeck.models.text_encoder:cross_encoder",
    "unet_denoiser": "limbeck.models.denoiser:unet_denoiser",
    "mlp_denoiser": "limbeck.models.denoiser:mlp_denoiser",
    "folder": "limbeck.models.folder:folder",
    "store": "limbeck.teachers.stored:store",
    "hub": "limbeck.models.folder:hub",
}

SPECS: dict[str, str] = {
    "image": "limbeck.models.classifier:ImageTask",
    "text": "limbeck.models.text_task:TextTask",
    "points": "limbeck.models.point_task:PointTask",
}
"""What a model can be built for: kind in a saved model's config.json -> ``module:dataclass``."""
