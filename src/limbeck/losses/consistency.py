"""One prediction follows another: soft cross-entropy between two sets of logits."""

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.losses.reduction import Loss, Reduction, Weight, in_full, reduce
from limbeck.losses.support import Logits


def consistency_cross_entropy(
    student: Logits,
    teacher: Logits,
    *,
    symmetric: bool = False,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``-sum_c p_c log q_c``, p = softmax(teacher), q = softmax(student); finite logits.

    CoTTA's loss (arXiv 2203.13591, equation 1), with the same gradient ``q - p`` as ``soft_cross_entropy``, but where
    the two sets of logits are equal it is exactly 0 and not a rounding error, which Adam would scale up to whole
    steps. ``symmetric`` is ``-0.5 sum_c p_c log q_c - 0.5 sum_c q_c log p_c``, as of CoTTA's ImageNet code (not in
    the paper).

    Args:
        student: logits [*batch, C]; half precision is computed in float32.
        teacher: logits [*batch, C]; nothing is detached.
        symmetric: the mean of both directions.
        weight: [*batch] >= 0, 0 = not used.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """
    student, teacher = in_full(student), in_full(teacher)
    values = _from_logits(teacher, student)
    if symmetric:
        values = 0.5 * (values + _from_logits(student, teacher))
    return reduce(values, weight, reduction)


def _from_logits(target: Logits, logits: Logits) -> Float[Tensor, "*batch"]:
    """``lse(z) - sum_c p_c z_c``; p is computed as torch computes the gradient of lse."""
    z, t = (values - values.detach().amax(-1, keepdim=True) for values in (logits, target))
    p = (t - torch.logsumexp(t, dim=-1, keepdim=True)).exp()
    return torch.logsumexp(z, dim=-1) - (p * z).sum(-1)
