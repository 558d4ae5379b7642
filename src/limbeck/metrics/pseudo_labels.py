"""How many labels are used and how many of those are right, where the truth is known."""

from jaxtyping import Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.types import Labels
from limbeck.losses.reduction import Mean, in_full


def coverage(labels: Labels) -> Mean:
    """Mean weight: the fraction of labels in use (SoftMatch's quantity, arXiv 2301.10921, definition 2.1)."""
    return Mean.of(labels.weights)


def precision(labels: Labels, hidden: Int[Tensor, "*batch"]) -> Mean:
    """Weighted fraction of the labels in use that are right (SoftMatch's quality, definition 2.2).

    Args:
        labels: class labels [*batch] of any kind; the most probable class counts.
        hidden: the true classes [*batch], -1 where they are not known: left out.

    Raises:
        LimbeckError: hidden labels of another shape.
    """
    if hidden.shape != labels.batch_shape:
        raise LimbeckError(f"hidden labels have shape {list(hidden.shape)}, the labels {list(labels.batch_shape)}")
    weight = in_full(labels.weights) * (hidden >= 0)
    return Mean((weight * (labels.predicted() == hidden)).sum(), weight.sum())
