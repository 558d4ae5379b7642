"""Classes as directions: a head that scales the cosine between features and one vector a class."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.build import build_inner
from limbeck.models.classifier import Classifier, ImageTask
from limbeck.models.heads import exchange_head, num_features


class ZeroShotHead(nn.Module):
    """``scale (W v / |v| + b)``: CLIP's zero-shot classifier (arXiv 2103.00020) where W are text embeddings and b is 0.

    Args:
        weight: W, first values of the vectors of the classes [C, D]; they are not brought to length 1 here.
        scale: of the logits.
    """

    def __init__(self, weight: Tensor, scale: float = 100.0) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        self.scale = scale
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, D] to logits [B, C]."""
        logits: Tensor = self.scale * self.linear(F.normalize(features, dim=-1))
        return logits


def prompt_mean(embeddings: Tensor, normalise: bool = True) -> Tensor:
    """One vector a class from the embeddings of its prompts (or of examples of it).

    Args:
        embeddings: [C, P, D], P of each class.
        normalise: bring each to length 1, and their mean again, as the zero-shot classifier of CLIP does; without, it
            is the plain mean.

    Returns:
        [C, D].
    """
    if not normalise:
        return embeddings.mean(1)
    return F.normalize(F.normalize(embeddings, dim=-1).mean(1), dim=-1)


def with_zero_shot_head(model: Classifier, weight: Tensor, classes: Sequence[str], scale: float = 100.0) -> Classifier:
    """A classifier by the direction of its features; its body is not copied.

    Args:
        model: its head is replaced, whatever its classes.
        weight: vectors of the classes [C, D].
        classes: their names.
        scale: of the logits.

    Raises:
        LimbeckError: no head was found, or not one vector a class of the size of the features.
    """
    wanted = [len(classes), num_features(model, "a zero-shot head")]
    if list(weight.shape) != wanted:
        raise LimbeckError(f"vectors of the classes have shape {list(weight.shape)}, expected {wanted}")
    inner = {"name": model.factory, **model.arguments} if model.factory is not None else None
    made = exchange_head(model, ZeroShotHead(weight, scale), classes)
    if inner is not None:
        made.factory, made.arguments = "zero_shot", {"model": inner, "scale": scale}
    return made


def zero_shot(task: ImageTask, *, model: dict[str, Any], scale: float = 100.0) -> Classifier:
    """A network whose classes are directions of its features.

    Args:
        task: Classes and images.
        model: The network, a model block such as {name: cnn, width: 16}.
        scale: Of the logits, which are its cosines times this.

    Raises:
        LimbeckError: the model is not one of limbeck's builders, or is not a classifier with a known head.
    """
    inner = build_inner(model, task, "zero_shot")
    features = num_features(inner, "zero_shot")
    return with_zero_shot_head(
        inner, F.normalize(torch.randn(len(task.classes), features), dim=-1), task.classes, scale
    )
