"""Classes that are told one by one."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from limbeck.losses.reduction import Loss, Reduction, in_full, reduce


def one_versus_rest(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    weight: Float[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """Binary cross-entropy of each class against all others, summed over the classes of a sample.

    K ln 2 for a sample of whose K logits all are 0.

    Args:
        logits: [B, K]; half precision is computed in float32.
        labels: [B], in [0, K).
        weight: [B] >= 0, what a sample counts.
        reduction: over samples.
    """
    full = in_full(logits)
    target = F.one_hot(labels, full.shape[-1]).to(full)
    return reduce(F.binary_cross_entropy_with_logits(full, target, reduction="none").sum(-1), weight, reduction)
