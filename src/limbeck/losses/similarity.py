"""Losses on the similarity score of a pair; the target is a real number, not a class."""

from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.losses.feature import direction
from limbeck.losses.reduction import Loss, Reduction, Weight, in_full, reduce

Scores: TypeAlias = Float[Tensor, "*batch"]
Targets: TypeAlias = Float[Tensor, "*targets"]
"""As many as there are scores; of another name, so that a wrong number meets the message below."""


def soft_bce_with_logits(
    logits: Scores,
    target: Targets,
    *,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``-(y log sigmoid(z) + (1 - y) log(1 - sigmoid(z)))``: binary cross-entropy with a soft target.

    Computed as ``softplus(z) - y z``, which is finite for every finite z. The gradient is ``sigmoid(z) - y``; for
    y in (0, 1) the minimum is the entropy of y, at z = logit(y). A target outside [0, 1] is taken as it is (a
    negative cosine as in Trans-Encoder, arXiv 2109.13059): the loss then has no minimum and falls without end.

    Args:
        logits: z, [*batch].
        target: y, [*batch].
        weight: [*batch] >= 0, 0 = not used.
        reduction: of one value an entry, as :func:`limbeck.losses.reduce`.

    Raises:
        LimbeckError: shapes that differ.
    """
    _check(logits, target)
    values = F.binary_cross_entropy_with_logits(in_full(logits), in_full(target), reduction="none")
    return reduce(values, weight, reduction)


def cosine_mse(
    first: Float[Tensor, "*batch features"],
    second: Float[Tensor, "*others other_features"],
    target: Targets,
    *,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``(cos(u, v) - y)^2``: squared error of the cosine (sentence-transformers' ``CosineSimilarityLoss``).

    Args:
        first: u, [*batch, D]; a zero vector has cosine 0 with everything.
        second: v, [*batch, D].
        target: y, [*batch].
        weight: [*batch] >= 0, 0 = not used.
        reduction: of one value an entry, as :func:`limbeck.losses.reduce`.

    Raises:
        LimbeckError: shapes that differ.
    """
    if first.shape != second.shape:
        raise LimbeckError(f"the vectors have shapes {list(first.shape)} and {list(second.shape)}; they must be equal")
    _check(first[..., 0], target)
    cosine = (direction(in_full(first)) * direction(in_full(second))).sum(-1)
    return reduce((cosine - in_full(target)).square(), weight, reduction)


def _check(scores: Tensor, target: Tensor) -> None:
    if scores.shape != target.shape:
        raise LimbeckError(
            f"the scores have shape {list(scores.shape)}, the targets {list(target.shape)}: give one target a pair"
        )
