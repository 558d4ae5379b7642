"""Which of two teachers to believe, sample by sample."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import LimbeckError, nearest

CERTAINTIES = ("variance", "entropy", "max")


def certainty(scores: Float[Tensor, "*batch classes"], by: str = "variance") -> Float[Tensor, "*batch"]:
    """How sure a prediction is, >= 0; one number a sample.

    Args:
        scores: [*batch, C], probabilities (for the variance also logits).
        by: "variance" of the C scores (arXiv 2307.08809, equation 3; population variance), "entropy": ln C less the
            entropy in nats, or "max", the largest score.

    Raises:
        LimbeckError: an unknown measure.
    """
    if by == "variance":
        return scores.var(-1, correction=0)
    if by == "entropy":
        return (math.log(scores.shape[-1]) - torch.special.entr(scores).sum(-1)).clamp_min(0)
    if by == "max":
        return scores.amax(-1)
    raise LimbeckError(f"unknown certainty {by!r}.{nearest(by, CERTAINTIES)} Known: {', '.join(CERTAINTIES)}")


def surer(one: Float[Tensor, "*batch"], other: Float[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """Where ``one`` is at least as sure as ``other``, [*batch]; it is believed where both are equally sure."""
    return one >= other


def certainty_ratio(less: Float[Tensor, "*batch"], more: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """``less / more`` in [0, 1], and 1 where both are 0 (arXiv 2307.08809, equation 7)."""
    return torch.where(more > 0, less / torch.where(more > 0, more, 1.0), 1.0)
