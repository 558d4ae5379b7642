"""Image models of timm."""

from typing import Any

from torch import nn

from limbeck.errors import LimbeckError, nearest, require
from limbeck.models.classifier import Classifier, ImageTask


def timm(
    task: ImageTask,
    *,
    model: str,
    pretrained: bool = False,
    size: int | None = None,
    options: dict[str, Any] | None = None,
) -> Classifier:
    """A model of timm, with the normalisation that it was made for; grey images are repeated to RGB.

    Args:
        task: Classes and images.
        model: Name as timm.create_model takes it, such as resnet18 or vit_tiny_patch16_224.augreg_in21k.
        pretrained: Whether to download weights; the head is new where their classes are not as many as the
            task's.
        size: Side of the square to which images are resized, in pixels. Default: the model's own size where
            it is pretrained or takes no other, else the size of the task's images.
        options: Further arguments of timm.create_model, such as drop_path_rate.

    Raises:
        LimbeckError: timm is not installed, does not know the model or its options, or cannot download.
    """
    library = require("timm", extra="timm")
    if ":" not in model and not library.is_model(model):
        raise LimbeckError(f"timm has no model {model!r}.{nearest(model, library.list_models())}")
    arguments: dict[str, Any] = {"num_classes": len(task.classes), **(options or {})}
    fixed = bool(getattr(library.models.get_pretrained_cfg(model), "fixed_input_size", False))
    if fixed and size is not None:
        arguments["img_size"] = size
    try:
        body: nn.Module = library.create_model(model, pretrained=pretrained, **arguments)
    # timm, its models and the hub below it raise errors of any kind for a bad option or a failed download.
    except Exception as error:
        what = "load the pretrained weights of" if pretrained else "make"
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise LimbeckError(f"timm cannot {what} {model!r} with {arguments}: {reason}") from error
    data = library.data.resolve_model_data_config(body)
    native = tuple(data["input_size"][1:])
    classifier = Classifier(
        body,
        task.classes,
        channels=data["input_size"][0],
        size=size if size is not None else native if pretrained or fixed else task.size,
        mean=data["mean"],
        std=data["std"],
    )
    # A saved model has its own weights: loading it downloads nothing.
    classifier.factory = "timm"
    classifier.arguments = {"model": model, "pretrained": False, "size": size, "options": options}
    return classifier
