"""Metrics of one class a pixel, all from the exact confusion matrix of a whole split."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError

Matrix = Int[Tensor, "classes classes"]


def pixel_confusion(predicted: Int[Tensor, "*batch"], truth: Int[Tensor, "*batch"], num_classes: int) -> Matrix:
    """Counts, int64 [C true, C predicted], of the pixels whose truth is known; those of batches add up.

    Args:
        predicted: classes [*batch] in [0, C).
        truth: classes [*batch] in [0, C), -1 = not known: left out.
        num_classes: C.

    Raises:
        LimbeckError: a class out of range.
    """
    known = truth >= 0
    for name, values in (("truth", truth[known]), ("predicted", predicted[known])):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            raise LimbeckError(
                f"{name} has classes {int(values.min())} to {int(values.max())}, not in [0, {num_classes})"
            )
    pairs = torch.bincount(truth[known].long() * num_classes + predicted[known].long(), minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def iou(matrix: Matrix) -> Float[Tensor, " classes"]:
    """Intersection over union of each class, float64 [C]; NaN for a class that is neither there nor predicted."""
    counts = matrix.double()
    both = counts.diagonal()
    return both / (counts.sum(0) + counts.sum(1) - both)


def miou(matrix: Matrix) -> float:
    """Mean of :func:`iou` over the classes that have one, in [0, 1].

    Raises:
        LimbeckError: no pixels.
    """
    _check_counted(matrix)
    return float(iou(matrix).nanmean())


def pixel_accuracy(matrix: Matrix) -> float:
    """Fraction of the pixels that are right, in [0, 1].

    Raises:
        LimbeckError: no pixels.
    """
    _check_counted(matrix)
    return int(matrix.diagonal().sum()) / int(matrix.sum())


def _check_counted(matrix: Matrix) -> None:
    if not matrix.sum():
        raise LimbeckError("there are no pixels with a known class to measure")
