"""Weights of classes by how many samples they have."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError


def effective_number_weights(counts: Int[Tensor, " classes"], beta: float | int) -> Float[Tensor, " classes"]:
    """``(1 - beta) / (1 - beta^n_c)``, brought to the sum C (arXiv 1901.05555, equation 2 and section 4).

    The inverse of the effective number of samples of a class: of n_c samples drawn from a volume of which each covers
    ``1 - beta``, so many are worth something. 0 gives equal weights, 1 weights in proportion to ``1 / n_c``.

    Args:
        counts: n, samples of each class, at least 1 each.
        beta: in [0, 1]; the paper takes 0.9 to 0.9999.

    Returns:
        float32 [C], of mean 1.

    Raises:
        LimbeckError: beta out of range, no classes, or one without samples.
    """
    if not 0 <= beta <= 1:
        raise LimbeckError(f"beta is {beta}, must be between 0 and 1")
    if not len(counts) or counts.min() < 1:
        raise LimbeckError(f"counts are {counts.tolist()}; every class must have at least 1 sample")
    sizes = counts.double()
    if beta == 1:
        weights = 1 / sizes
    elif beta == 0:
        weights = torch.ones_like(sizes)
    else:
        # 1 - beta^n would lose its digits near beta = 1.
        weights = (1 - beta) / -torch.expm1(sizes * math.log(beta))
    return (weights * len(sizes) / weights.sum()).float()
