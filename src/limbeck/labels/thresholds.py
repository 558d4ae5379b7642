"""Thresholds of confidence that the data decide."""

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import LimbeckError


def quantile_threshold(
    confidences: Float[Tensor, " samples"], quantile: float | int = 0.05, margin: float | int = 0.05
) -> float:
    """A quantile of the confidences on familiar data, less a margin: below it a sample looks unfamiliar.

    How the author of CoTTA (arXiv 2203.13591) chooses p_th: the 5% quantile of the source model's confidences on
    source data, less 0.05 (0.74 - 0.05 = 0.69 on Cityscapes). The paper only tabulates the results.

    Args:
        confidences: the largest probability of each sample, [N], N >= 1.
        quantile: in [0, 1], interpolated linearly between neighbours.
        margin: taken off.

    Raises:
        LimbeckError: no samples, or a quantile outside [0, 1].
    """
    if not 0 <= quantile <= 1:
        raise LimbeckError(f"quantile is {quantile}, must be between 0 and 1")
    if not len(confidences):
        raise LimbeckError("a quantile needs at least one confidence, there are none")
    # Not torch.quantile, which refuses more than 16 million values.
    ordered = confidences.double().sort().values
    place = quantile * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return float(torch.lerp(ordered[low], ordered[high], place - low)) - margin
