"""What a bag's class proportions say of its members together."""

import math

from jaxtyping import Float
from torch import Tensor

from limbeck.losses.divergence import soft_cross_entropy
from limbeck.losses.reduction import Loss, Reduction, Weight, in_full


def proportion_cross_entropy(
    logits: Float[Tensor, "*bags size classes"],
    proportions: Float[Tensor, "*bags classes"],
    *,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``-sum_c p_c log(1/n sum_i q_ic)``: cross-entropy of a bag's proportions and its members' mean prediction.

    The batch averager of DLLP (arXiv 1709.04108, section 3): its minimum is where the predictions of a bag add up to
    its counts, whoever they come from. For bags of one sample it is the usual cross-entropy.

    Args:
        logits: of the members, [*bags, n, C].
        proportions: p of each bag, [*bags, C], sum 1.
        weight: what a bag counts, [*bags].
        reduction: as :func:`limbeck.losses.reduce`.
    """
    # The logarithm of a mean of probabilities is a log-probability already: its softmax is itself.
    mean = in_full(logits).log_softmax(-1).logsumexp(-2) - math.log(logits.shape[-2])
    return soft_cross_entropy(mean, proportions, weight=weight, reduction=reduction)
