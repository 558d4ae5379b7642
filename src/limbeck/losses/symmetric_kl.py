"""Forward and reverse KL in equal parts."""

from limbeck.labels.types import TopK
from limbeck.losses.divergence import forward_kl, reverse_kl
from limbeck.losses.reduction import Loss, Reduction, Weight, reduce
from limbeck.losses.support import Logits, Tail


def symmetric_kl(
    student: Logits,
    teacher: Logits | TopK,
    *,
    temperature: float | int = 1.0,
    tail: Tail = "bucket",
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``(KL(p || q) + KL(q || p)) / 2``, half of Jeffreys' divergence; symmetric, and without an upper bound.

    SSLD (arXiv 2103.05959) calls it "JS loss" and PaddleClas "DML loss"; it is not the Jensen-Shannon divergence
    (:func:`limbeck.losses.js`), which compares both sides with their mixture.

    The released code takes logarithms of probabilities plus 1e-12, so that its log ratios end at 27.6; here they are
    those of the log-softmax.

    Args:
        student: see :mod:`limbeck.losses.divergence`.
        teacher: the same.
        temperature: the same.
        tail: the same; ``"zero"`` is refused, as by the reverse KL.
        weight: the same.
        reduction: the same.

    Raises:
        LimbeckError: ``tail="zero"``, or as of :func:`limbeck.losses.forward_kl`.
    """
    forward = forward_kl(student, teacher, temperature=temperature, tail=tail, reduction="none")
    reverse = reverse_kl(student, teacher, temperature=temperature, tail=tail, reduction="none")
    return reduce((forward + reverse) / 2, weight, reduction)
