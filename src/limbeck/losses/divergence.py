"""Divergences between a teacher's p and a student's q over classes, student first.

Per entry, with p = softmax(teacher / T), q = softmax(student / T) and natural logarithms. No function here
multiplies by T^2: Hinton et al. (arXiv 1503.02531) and DistillKit do, TRL, Liger and distillm do not, so the
method that wants it writes ``loss * temperature**2``. Nothing is detached: a teacher that must not learn
gives logits without gradient.

Arguments that all functions share:
    student: logits [*batch, C], any leading dimensions (classes last: ``movedim(1, -1)`` for maps). Half
        precision is computed in float32.
    teacher: logits or log-probabilities [*batch, C] (-inf where p = 0), or :class:`limbeck.labels.TopK`.
    temperature: T > 0, applied to both sides.
    tail: what a top-k teacher says about the other classes, see
        :func:`limbeck.losses.support.on_one_support`.
    weight: [*batch] >= 0, 0 = not used.
    reduction: ``"mean"`` (sum of weight x value / sum of weight, 0 for an empty selection), ``"sum"`` or
        ``"none"``.
"""

import math
import warnings
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.labels.types import TopK
from limbeck.losses.reduction import Loss, Reduction, Weight, in_full, read_labels, reduce
from limbeck.losses.support import Logits, LogProbs, Tail, log_probabilities, on_one_support

Interpolation: TypeAlias = Literal["trl", "continuous"]
_UNREAD = torch.iinfo(torch.int64).min  # no label's number: a -1 that counts stays an error


def cross_entropy(
    logits: Logits,
    labels: Int[Tensor, "*batch"],
    *,
    label_smoothing: float | int = 0.0,
    classes: Bool[Tensor, " classes"] | Bool[Tensor, "*batch classes"] | None = None,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``-log q_y``; with smoothing e, the cross-entropy against ``(1 - e) onehot(y) + e / C``.

    Args:
        logits: [*batch, C].
        labels: class indices [*batch] in [0, C). Where the weight is 0 the label is not read and may be -1;
            anywhere else an index out of range raises torch's own error.
        label_smoothing: e in [0, 1] (arXiv 1512.00567, section 7).
        classes: the classes that take part, [C] or [*batch, C] (:attr:`limbeck.labels.Labels.classes`); the softmax is
            over them only, and the logits of the others get no gradient. Infinite for a label that takes no part,
            and with smoothing.
        weight: see the module.
        reduction: see the module.
    """
    if classes is not None:
        logits = logits.masked_fill(~classes, -torch.inf)
    logits, read = in_full(logits), read_labels(labels, weight, _UNREAD)
    if labels.ndim != 1:
        logits, read = logits.reshape(-1, logits.shape[-1]), read.reshape(-1)
    # Torch's own mean has the same gradient, bit for bit, with two operations less; with smoothing it rounds otherwise.
    plain = weight is None and reduction == "mean" and not label_smoothing and labels.numel() > 0
    values = F.cross_entropy(
        logits,
        read,
        ignore_index=_UNREAD,
        reduction="mean" if plain else "none",
        label_smoothing=label_smoothing,
    )
    if plain:
        return values
    # What is not read is 0, but a weight that is learned reads all labels that there are.
    finite = weight is not None and not weight.requires_grad
    return reduce(values if labels.ndim == 1 else values.view(labels.shape), weight, reduction, finite=finite)


def soft_cross_entropy(
    logits: Logits,
    probabilities: Logits | TopK,
    *,
    temperature: float | int = 1.0,
    tail: Tail = "bucket",
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``-sum_c p_c log q_c``: the forward KL plus the entropy of p (distillm's ``forward_kl`` is this).

    Args:
        logits: [*batch, C].
        probabilities: [*batch, C] >= 0, taken as they are: the temperature is the student's only; or a
            top k, treated as in :func:`forward_kl`.
        temperature: see the module.
        tail: see the module.
        weight: see the module.
        reduction: see the module.
    """
    if isinstance(probabilities, TopK):
        log_q, log_p = on_one_support(logits, probabilities, temperature, tail)
        p = log_p.exp()
    else:
        log_q, p = log_probabilities(logits, temperature), probabilities
    # A class that both sides exclude would give 0 x inf.
    return reduce(-(p * log_q.masked_fill(p.logical_not(), 0.0)).sum(-1), weight, reduction)


def forward_kl(
    student: Logits,
    teacher: Logits | TopK,
    *,
    temperature: float | int = 1.0,
    tail: Tail = "bucket",
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``KL(p || q) = sum_c p_c (log p_c - log q_c)``: covers the modes of the teacher.

    TRL / Liger generalized JSD at beta = 0; DistillKit ``kl`` without its T^2.
    """
    log_q, log_p = on_one_support(student, teacher, temperature, tail)
    return reduce(_kl(log_p, log_q), weight, reduction)


def reverse_kl(
    student: Logits,
    teacher: Logits | TopK,
    *,
    temperature: float | int = 1.0,
    tail: Tail = "bucket",
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``KL(q || p)``: seeks a mode. TRL / Liger generalized JSD at beta = 1; distillm ``reverse_kl``.

    Infinite where the teacher gives a class that the student allows no probability at all.

    Raises:
        LimbeckError: ``tail="zero"``, under which it is infinite by definition.
    """
    if isinstance(teacher, TopK):
        _refuse_zero_tail("reverse_kl", tail)
    log_q, log_p = on_one_support(student, teacher, temperature, tail)
    return reduce(_kl(log_q, log_p), weight, reduction)


def js(
    student: Logits,
    teacher: Logits | TopK,
    *,
    temperature: float | int = 1.0,
    tail: Tail = "bucket",
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """Jensen-Shannon: ``KL(p || M) / 2 + KL(q || M) / 2``, M = (p + q) / 2; between 0 and log 2.

    TRL / Liger generalized JSD at beta = 0.5; DistillKit ``jsd`` without its T^2.
    """
    return generalized_jsd(
        student, teacher, beta=0.5, temperature=temperature, tail=tail, weight=weight, reduction=reduction
    )


def generalized_jsd(
    student: Logits,
    teacher: Logits | TopK,
    *,
    beta: float | int = 0.5,
    interpolation: Interpolation = "trl",
    temperature: float | int = 1.0,
    tail: Tail = "bucket",
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """Generalized Jensen-Shannon divergence (arXiv 2306.13649, equation 1), M = beta p + (1 - beta) q.

    ``"trl"`` (TRL, Liger, TAID; distillm ``js_distance(lam)`` at beta = 1 - lam): forward KL at beta = 0,
    reverse KL at beta = 1, and between them ``beta KL(p || M) + (1 - beta) KL(q || M)``, which tends to 0 at
    both ends: 0.999 gives about a thousandth of the value at 1.

    ``"continuous"``: ``(1 - beta) KL(p || M) + beta KL(q || M)``, which tends to the two KLs at the ends and
    is the same at beta = 0.5.

    Warns:
        UserWarning: ``"trl"`` with beta in (0, 0.05) or (0.95, 1), where the value all but vanishes.

    Raises:
        LimbeckError: beta outside [0, 1].
    """
    _check_share("beta", beta)
    if beta == 0:
        return forward_kl(student, teacher, temperature=temperature, tail=tail, weight=weight, reduction=reduction)
    if beta == 1:
        return reverse_kl(student, teacher, temperature=temperature, tail=tail, weight=weight, reduction=reduction)
    # A compiled graph cannot warn.
    if interpolation == "trl" and not 0.05 <= beta <= 0.95 and not torch.compiler.is_compiling():
        warnings.warn(
            f"generalized_jsd(beta={beta}) tends to 0 near beta = {round(beta)}, where it is defined as the "
            'full KL: use that value itself, or interpolation="continuous"',
            stacklevel=2,
        )
    log_q, log_p = on_one_support(student, teacher, temperature, tail)
    log_m = _log_mixture(log_p, log_q, beta)
    of_p = beta if interpolation == "trl" else 1 - beta
    return reduce(of_p * _kl(log_p, log_m) + (1 - of_p) * _kl(log_q, log_m), weight, reduction)


def skewed_forward_kl(
    student: Logits,
    teacher: Logits | TopK,
    *,
    skew: float | int = 0.1,
    temperature: float | int = 1.0,
    tail: Tail = "bucket",
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``KL(p || skew p + (1 - skew) q)`` (DistiLLM, arXiv 2402.03898, equation 4); at most ``-log skew``.

    distillm ``skewed_forward_kl(lam)`` leaves out the entropy of p (a constant for the student): add it to
    compare. skew = 0 is the forward KL.

    Raises:
        LimbeckError: skew outside [0, 1].
    """
    _check_share("skew", skew)
    log_q, log_p = on_one_support(student, teacher, temperature, tail)
    return reduce(_kl(log_p, _log_mixture(log_p, log_q, skew)), weight, reduction)


def skewed_reverse_kl(
    student: Logits,
    teacher: Logits | TopK,
    *,
    skew: float | int = 0.1,
    temperature: float | int = 1.0,
    tail: Tail = "bucket",
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``KL(q || (1 - skew) p + skew q)`` (DistiLLM, arXiv 2402.03898, section 3.1); distillm's, as it is.

    skew = 0 is the reverse KL.

    Raises:
        LimbeckError: skew outside [0, 1]; ``tail="zero"`` with skew = 0, which is infinite by definition.
    """
    _check_share("skew", skew)
    if isinstance(teacher, TopK) and skew == 0:
        _refuse_zero_tail("skewed_reverse_kl with skew 0", tail)
    log_q, log_p = on_one_support(student, teacher, temperature, tail)
    return reduce(_kl(log_q, _log_mixture(log_q, log_p, skew)), weight, reduction)


def total_variation(
    student: Logits,
    teacher: Logits | TopK,
    *,
    temperature: float | int = 1.0,
    tail: Tail = "bucket",
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``sum_c |p_c - q_c| / 2``, between 0 and 1: distillm, DistillKit, Liger (from probabilities)."""
    log_q, log_p = on_one_support(student, teacher, temperature, tail)
    return reduce((log_p.exp() - log_q.exp()).abs().sum(-1) / 2, weight, reduction)


def _kl(log_a: LogProbs, log_b: LogProbs) -> Float[Tensor, "*batch"]:
    """``KL(a || b)``; entries with a = 0 count for 0 whatever b is, in the gradient too."""
    a = log_a.exp()
    return (a * (log_a - log_b).masked_fill(a.logical_not(), 0.0)).sum(-1)


def _log_mixture(log_a: LogProbs, log_b: LogProbs, share: float | int) -> LogProbs:
    """``log(share a + (1 - share) b)``."""
    if share == 0:
        return log_b
    if share == 1:
        return log_a
    # logaddexp(-inf, -inf) has a NaN gradient; exp of the floor is 0 all the same.
    floor = torch.finfo(log_a.dtype).min / 4
    return torch.logaddexp((log_a + math.log(share)).clamp(min=floor), (log_b + math.log1p(-share)).clamp(min=floor))


def _check_share(name: str, share: float | int) -> None:
    if not 0 <= share <= 1:
        raise LimbeckError(f"{name} is {share}, must be between 0 and 1")


def _refuse_zero_tail(what: str, tail: Tail) -> None:
    if tail == "zero":
        raise LimbeckError(
            f'{what} is infinite with tail="zero", where the teacher gives the classes outside its top k no '
            'probability: take tail="bucket" or "renormalize"'
        )
