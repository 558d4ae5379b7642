"""Forward and reverse KL, weighed by where the student is wrong."""

import torch

from limbeck.errors import LimbeckError
from limbeck.labels.types import TopK
from limbeck.losses.divergence import forward_kl, reverse_kl
from limbeck.losses.reduction import Loss, Reduction, Weight, reduce
from limbeck.losses.support import Logits, Tail, on_one_support


def adaptive_kl(
    student: Logits,
    teacher: Logits | TopK,
    *,
    head: float | int = 0.5,
    temperature: float | int = 1.0,
    tail: Tail = "bucket",
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``g_h / (g_h + g_t) KL(p || q) + g_t / (g_h + g_t) KL(q || p)`` (AKL, arXiv 2404.02657, section 4).

    g_h and g_t are the sums of ``|p - q|`` over the head and the tail of the teacher's distribution; the tail are
    the least probable classes, as long as their probabilities add up to less than ``head``. The forward KL mends
    the head first, the reverse KL the tail. The weights are coefficients, without gradient (a choice: the source
    does not say).

    TAID's baseline of this name builds the mask of the head in sorted order but applies it to unsorted gaps;
    here mask and gaps are in one order.

    Args:
        student: see :mod:`limbeck.losses.divergence`.
        teacher: the same.
        head: share of the probability from which the head begins, counted from the least probable class.
        temperature: the same.
        tail: the same; ``"zero"`` is refused, as by the reverse KL.
        weight: the same.
        reduction: the same.

    Raises:
        LimbeckError: head outside [0, 1], or ``tail="zero"``.
    """
    if not 0 <= head <= 1:
        raise LimbeckError(f"head is {head}, must be between 0 and 1")
    forward = forward_kl(student, teacher, temperature=temperature, tail=tail, reduction="none")
    reverse = reverse_kl(student, teacher, temperature=temperature, tail=tail, reduction="none")
    with torch.no_grad():
        log_q, log_p = on_one_support(student, teacher, temperature, tail)
        p, order = log_p.exp().sort(dim=-1, stable=True)
        gaps = (p - log_q.exp().gather(-1, order)).abs()
        in_head = p.cumsum(-1) >= head
        of_head, of_all = gaps.masked_fill(~in_head, 0.0).sum(-1), gaps.sum(-1)
        # Without any gap both divergences are 0, whatever the share.
        share = of_head / torch.where(of_all == 0, 1.0, of_all)
    return reduce(share * forward + (1 - share) * reverse, weight, reduction)
