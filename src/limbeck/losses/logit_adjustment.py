"""Losses that know how frequent each class is: a softmax with the prior of the classes inside."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.losses.reduction import in_full
from limbeck.losses.support import Logits


def adjust_logits(
    logits: Logits, counts: Int[Tensor, " classes"], strength: float | int | Float[Tensor, "..."]
) -> Logits:
    """``z_c + strength log(n_c / sum n)``: what a training on a long tail puts into its softmax.

    Strength 1 is the logit-adjusted softmax (arXiv 2007.07314, equation 10, with tau = 1) and balanced softmax
    (arXiv 2007.10740, equation 3): the bare logits then estimate the posterior under equal classes. 0 is the plain
    softmax; the larger it is the more the bare logits favour rare classes, and below 0 frequent ones (experts of MDCS,
    arXiv 2308.09922). Only ratios of the counts matter.

    Args:
        logits: z, [*batch, C]; half precision is computed in float32.
        counts: n, training samples of each class, at least 1 each.
        strength: one number, or one for each entry (any shape that broadcasts to [*batch]).
    """
    logits = in_full(logits)
    sizes = counts.to(logits.dtype)
    if isinstance(strength, Tensor):
        strength = strength.to(logits.dtype).unsqueeze(-1)
    return logits + strength * torch.log(sizes / sizes.sum())
