"""Image classifiers of torchvision."""

from typing import Any

from torch import nn

from limbeck.errors import LimbeckError, nearest
from limbeck.models.classifier import Classifier, ImageTask


def torchvision(task: ImageTask, *, model: str, weights: str | None = None, size: int | None = None) -> Classifier:
    """A classifier of torchvision; grey images are repeated to RGB.

    Args:
        task: Classes and images.
        model: Name as torchvision.models.get_model takes it, such as resnet18.
        weights: Pretrained weights to download, such as DEFAULT or IMAGENET1K_V1; their classification head
            is replaced by a new one, their normalisation is kept. Default: none, and the normalisation of the
            task.
        size: Side of the square to which images are resized, in pixels. Default: the size of the weights;
            without weights the size of the task's images (224 for a vision transformer, whose size is fixed).

    Raises:
        LimbeckError: torchvision does not know the model or the weights, or cannot download them.
    """
    # Imported here: it takes seconds, and the other builders need none of it.
    import torchvision.models as library

    names = library.list_models(module=library)
    if model not in names:
        raise LimbeckError(f"torchvision has no classifier {model!r}.{nearest(model, names)}")
    mean, std = task.normalisation(3)
    arguments: dict[str, Any] = {}
    pretrained = None
    if weights is None:
        arguments["num_classes"] = len(task.classes)
    else:
        known = library.get_model_weights(model).__members__
        if weights not in known:
            raise LimbeckError(
                f"torchvision's {model} has no weights {weights!r}.{nearest(weights, known)} Known: {', '.join(known)}"
            )
        pretrained = known[weights]
        transforms = pretrained.transforms()
        mean, std = tuple(transforms.mean), tuple(transforms.std)
        size = transforms.crop_size[0] if size is None else size
    if model.startswith("vit_"):
        size = 224 if size is None else size
        arguments["image_size"] = size
    try:
        body: nn.Module = library.get_model(model, weights=pretrained, **arguments)
    # Downloads and models raise errors of any kind.
    except Exception as error:
        what = f"load the weights {weights} of" if weights else "make"
        raise LimbeckError(f"torchvision cannot {what} {model!r}: {type(error).__name__}: {error}") from error
    if pretrained is not None:
        replace_head(body, len(pretrained.meta["categories"]), len(task.classes))
    classifier = Classifier(
        body, task.classes, channels=3, size=task.size if size is None else size, mean=mean, std=std
    )
    # A saved model has its own weights: loading it downloads nothing.
    classifier.factory = "torchvision"
    classifier.arguments = {"model": model, "weights": None, "size": size}
    return classifier


def replace_head(body: nn.Module, old: int, new: int) -> None:
    """Put a new layer of ``new`` outputs in the place of every classification layer of ``old``."""
    for name, module in list(body.named_modules()):
        head: nn.Module
        if isinstance(module, nn.Linear) and module.out_features == old:
            head = nn.Linear(module.in_features, new, bias=module.bias is not None)
        elif isinstance(module, nn.Conv2d) and module.out_channels == old and module.kernel_size == (1, 1):
            head = nn.Conv2d(module.in_channels, new, kernel_size=1, bias=module.bias is not None)
        else:
            continue
        body.set_submodule(name, head)
