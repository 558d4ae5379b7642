"""Losses of two-stage detectors over sampled anchors and regions, as means that are not divided yet."""

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from limbeck.losses.divergence import cross_entropy
from limbeck.losses.reduction import Mean, Weight, in_full


def weighted_cross_entropy(
    logits: Float[Tensor, "regions classes"], labels: Int[Tensor, " regions"], weight: Weight
) -> Mean:
    """``sum_j w_j CE(z_j, y_j) / max(sum_j w_j, 1)`` over all regions, foreground and background together.

    Source: Soft Teacher (arXiv 2106.09018), classification of unlabelled regions, in the form of the released code:
    one mean over foreground regions (weight 1) and background regions (their reliability). The paper prints the two
    parts with normalisers of their own, which its author calls an error (issue 19 of the released code).

    Args:
        logits: [R, C]; half precision is computed in float32.
        labels: class indices [R]; not read where the weight is 0.
        weight: [R] >= 0.

    Returns:
        Total and clamped count; micro-batches are exact wherever each of them has weights that sum to 1 or more.
    """
    total = cross_entropy(logits, labels, weight=weight, reduction="sum")
    return Mean(total, weight.sum(dtype=total.dtype).clamp_min(1.0))


def box_l1(
    deltas: Float[Tensor, "regions 4"], targets: Float[Tensor, "regions 4"], foreground: Bool[Tensor, " regions"]
) -> Mean:
    """Sum of absolute differences over foreground regions, divided by the number of all sampled regions.

    The L1 loss of the box regression in mmdetection's Faster R-CNN, which Soft Teacher (arXiv 2106.09018) trains.

    Args:
        deltas: predicted offsets of each sampled region from its own place.
        targets: the wanted ones; not read where a region is background.
        foreground: which regions have a box.
    """
    # Selected, not multiplied: the target of a background region may be infinite.
    distance = (in_full(deltas[foreground]) - in_full(targets[foreground])).abs().sum()
    return Mean(distance, distance.new_full((), max(len(foreground), 1)))


def objectness(logits: Float[Tensor, " anchors"], foreground: Bool[Tensor, " anchors"]) -> Mean:
    """Mean binary cross-entropy over the sampled anchors (Faster R-CNN, arXiv 1506.01497, equation 1)."""
    full = in_full(logits)
    values = F.binary_cross_entropy_with_logits(full, foreground.to(full), reduction="none")
    return Mean.of(values)
