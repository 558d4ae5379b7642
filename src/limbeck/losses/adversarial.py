"""Losses of two players: a discriminator tells real from generated, a generator makes it err.

Logits [*batch] > 0 mean real. Half precision is computed in float32.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.losses.reduction import Loss, Reduction, Weight, in_full, reduce

Logit = Float[Tensor, "*batch"]


def non_saturating_generator(fake: Logit, *, weight: Weight | None = None, reduction: Reduction = "mean") -> Loss:
    """``-log sigmoid(fake) = softplus(-fake)`` (arXiv 1406.2661, section 3, in the form that does not saturate).

    Args:
        fake: logits of generated samples.
        weight: what a sample counts.
        reduction: as :func:`limbeck.losses.reduce`.
    """
    return reduce(F.softplus(-in_full(fake)), weight, reduction)


def non_saturating_discriminator(
    real: Logit, fake: Logit, *, weight: Weight | None = None, reduction: Reduction = "mean"
) -> Loss:
    """``softplus(fake) + softplus(-real)`` (arXiv 1406.2661, equation 1); 2 ln 2 for one that tells nothing.

    Args:
        real: logits of real samples.
        fake: logits of as many generated ones.
        weight: what a pair counts.
        reduction: as :func:`limbeck.losses.reduce`.
    """
    return reduce(F.softplus(in_full(fake)) + F.softplus(-in_full(real)), weight, reduction)
