"""Classes told by the distance from their mean predictions in the batch."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from limbeck.losses.reduction import Loss, Reduction, in_full, reduce


def prototype_cross_entropy(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: float | int = 0.1,
    reduction: Reduction = "mean",
) -> Loss:
    """Cross-entropy of the scores ``-|q_i - r_c|^2``, with q = softmax(z / T) and r_c the mean q of class c.

    SPARSE (arXiv 2508.06429, as released). Of a class without a sample in the batch r_c = 0; the gradient reaches the
    means too. Scores lie between -2 and 0: with one-hot, right predictions of all K classes the loss is
    ``ln(1 + (K - 1) e^-2)``, not 0.

    Args:
        logits: z, [B, K]; half precision is computed in float32.
        labels: [B], in [0, K).
        temperature: T > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """
    q = (in_full(logits) / temperature).softmax(-1)
    member = F.one_hot(labels, q.shape[-1]).to(q)
    means = member.T @ q / member.sum(0).clamp(min=1)[:, None]
    distances = (q[:, None] - means).square().sum(-1)
    return reduce(F.cross_entropy(-distances, labels, reduction="none"), None, reduction)
