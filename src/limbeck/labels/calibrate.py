"""Stored labels mended by how sure the teacher was: too hard, in between, or too easy."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.refine import smooth
from limbeck.labels.types import Labels, one_hot

DISCARD, SOFTEN, KEEP = 0, 1, 2


def certainty_bands(
    scores: Float[Tensor, "*batch"], low: float | int, middle: float | int, top: float | int
) -> Int[Tensor, "*batch"]:
    """What becomes of each label (FerKD, arXiv 2312.17473): DISCARD, SOFTEN or KEEP, int64 [*batch].

    Below ``low`` (hopelessly hard) or above ``top`` (trivially easy) a region is discarded, from ``low`` to below
    ``middle`` (background, context) its label becomes a softened true one, and up to ``top`` it is kept.

    Args:
        scores: how sure the teacher was of each region, such as its largest probability.
        low: T_L.
        middle: T_M.
        top: T_T.

    Raises:
        LimbeckError: low > middle.
    """
    if low > middle:
        raise LimbeckError(f"low is {low} and middle {middle}; they must rise")
    bands = torch.where(scores < middle, SOFTEN, KEEP)
    return torch.where((scores < low) | (scores > top), DISCARD, bands)


def calibrate(
    probabilities: Float[Tensor, "*batch classes"],
    truth: Int[Tensor, "*batch"],
    bands: Int[Tensor, "*batch"],
    epsilon: float | int = 0.1,
) -> Labels:
    """Labels by band (FerKD, arXiv 2312.17473): the teacher's where kept, softened true ones, weight 0 where discarded.

    The softened label is ``(1 - epsilon) onehot(y) + epsilon / C``; how the paper spreads epsilon is not known.

    Args:
        probabilities: the teacher's, [*batch, C].
        truth: true classes, [*batch].
        bands: of :func:`certainty_bands`.
        epsilon: in [0, 1].
    """
    softened = smooth(one_hot(truth, probabilities.shape[-1], probabilities.dtype), epsilon)
    target = torch.where((bands == SOFTEN)[..., None], softened, probabilities)
    return Labels(target, weight=(bands != DISCARD).to(target))
