"""Losses of logits that are never held at once: the output layer and the loss, a few rows at a time.

A language model's logits are its largest tensor: 4,096 tokens of 32,768 words are half a gigabyte, and a divergence
between two models holds several of that size. Here rows are projected, compared and differentiated chunk by chunk, and
only the gradients of the hidden states and of the output layer remain (gradient in forward, as in Liger's chunked
losses). The work is that of the plain computation: nothing is computed twice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.labels.types import TopK
from limbeck.losses.divergence import cross_entropy, forward_kl
from limbeck.losses.reduction import Loss, Mean, Weight

CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""Logits held at a time: few enough to stay near the cache, rows enough for fast products."""


class Projection(NamedTuple):
    """Logits that are not computed yet: ``hidden @ weight.T + bias``.

    Attributes:
        hidden: [*batch, H], the inputs of the output layer.
        weight: [C, H].
        bias: [C], or None.
    """

    hidden: Float[Tensor, "*batch width"]
    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, " classes"] | None = None


def fused_linear(logits: Projection, loss: Callable[[Tensor, slice], Tensor], chunk: int | None = None) -> Tensor:
    """The sum of a loss over rows whose logits are computed a chunk at a time.

    Gradients reach the three tensors of ``logits`` and nothing else: whatever else the loss reads is a constant. They
    are computed with the value, in the precision of the logits, and summed over chunks in float32 at least. There is
    no second derivative.

    Args:
        logits: what is projected; hidden is [N, H].
        loss: called with logits [n, C] and the slice of rows that they are of; the sum over these rows, scalar.
        chunk: rows at a time; None: as many as :data:`CHUNK_ELEMENTS` holds.

    Raises:
        LimbeckError: shapes that do not fit, or a chunk below 1.
    """
    hidden, weight, bias = logits
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise LimbeckError(
            f"hidden is {list(hidden.shape)} and weight {list(weight.shape)}; expected [rows, width], [classes, width]"
        )
    if chunk is None:
        chunk = max(1, CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"]) // len(weight))
    if chunk < 1:
        raise LimbeckError(f"chunk is {chunk}, must be at least 1")
    total: Tensor = _FusedLinear.apply(hidden, weight, bias, loss, chunk)
    return total


def fused_linear_divergence(
    student: Projection,
    teacher: Projection | Float[Tensor, "*batch classes"] | TopK,
    divergence: Callable[..., Loss] = forward_kl,
    *,
    labels: Int[Tensor, "*batch"] | None = None,
    hard: float | int = 0.0,
    weight: Weight | None = None,
    chunk: int | None = None,
) -> Mean:
    """``(1 - hard) D(student, teacher) + hard CE(student, labels)``, meaned over the rows that count.

    Equal to the same computation on whole logits. As a :class:`~limbeck.losses.reduction.Mean` it is exact over
    micro-batches too: totals and counts are added, then divided.

    Args:
        student: its hidden states and output layer; these learn.
        teacher: its hidden states and output layer, of any width, or logits, or its top k. No gradient flows to it.
        divergence: of :mod:`limbeck.losses.divergence` or called like these, ``functools.partial`` for options: with
            logits [n, C], the teacher's logits or top k of the same rows, ``weight`` and ``reduction="sum"``.
        labels: class indices [*batch], read where hard > 0 and the weight is not 0.
        hard: share of the cross-entropy, in [0, 1].
        weight: [*batch] >= 0, 0 = not used: rows without weight are not even projected.
        chunk: rows at a time, see :func:`fused_linear`.

    Raises:
        LimbeckError: hard out of range or without labels, or shapes that do not fit.
    """
    if not 0 <= hard <= 1 or (hard and labels is None):
        raise LimbeckError(f"hard is {hard}, must be between 0 and 1, and 0 where no labels are given")
    shape = student.hidden.shape[:-1]
    given = {"teacher": _first(teacher).shape[:-1], "labels": shape if labels is None else labels.shape}
    for name, other in {**given, "weight": shape if weight is None else weight.shape}.items():
        if other != shape:
            raise LimbeckError(f"the student has rows {list(shape)} and the {name} {list(other)}, must be the same")

    used = None if weight is None else weight.reshape(-1).nonzero()[:, 0]

    def rows(values: Any) -> Any:
        """The used rows of a tensor [*batch, ...]."""
        flat = values.reshape(-1, *values.shape[len(shape) :])
        return flat if used is None else flat[used]

    own = student._replace(hidden=rows(student.hidden))
    other = _detach(teacher, rows)
    weights = own.hidden.new_ones(len(own.hidden)) if weight is None else rows(weight)
    target = None if labels is None else rows(labels)

    def loss(logits: Tensor, part: slice) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        if hard < 1:
            total = total + (1 - hard) * divergence(logits, _part(other, part), weight=weights[part], reduction="sum")
        if hard > 0:
            assert target is not None
            total = total + hard * cross_entropy(logits, target[part], weight=weights[part], reduction="sum")
        return total

    return Mean(fused_linear(own, loss, chunk), weights.sum(dtype=torch.float32))


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: Callable[..., Tensor], chunk: int
    ) -> Tensor:
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        kind = torch.promote_types(hidden.dtype, torch.float32)
        gradients = [
            torch.empty_like(hidden) if of_hidden else None,
            torch.zeros_like(weight, dtype=kind) if of_weight else None,
            torch.zeros_like(bias, dtype=kind) if bias is not None and of_bias else None,
        ]
        total = hidden.new_zeros((), dtype=kind)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = F.linear(hidden[rows], weight, bias)
            if not any(ctx.needs_input_grad[:3]):
                total += loss(logits, rows)
                continue
            gradient, value = torch.func.grad_and_value(loss)(logits, rows)
            total += value
            if gradients[0] is not None:
                gradients[0][rows] = gradient @ weight.to(gradient.dtype)
            if gradients[1] is not None and gradient.dtype == hidden.dtype == kind:
                gradients[1].addmm_(gradient.mT, hidden[rows])  # without a second tensor of its size
            elif gradients[1] is not None:
                gradients[1] += gradient.mT @ hidden[rows].to(gradient.dtype)
            if gradients[2] is not None:
                gradients[2] += gradient.sum(0)
        ctx.kinds = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        saved = zip(ctx.saved_tensors, ctx.kinds, strict=True)
        return *(None if g is None else (outer * g).to(kind) for g, kind in saved), None, None


def _first(teacher: Projection | Tensor | TopK) -> Tensor:
    return teacher if isinstance(teacher, Tensor) else teacher[0]


def _detach(teacher: Any, rows: Callable[[Tensor], Tensor]) -> Any:
    """The rows of a teacher that are used, without gradient."""
    if isinstance(teacher, Projection):
        bias = None if teacher.bias is None else teacher.bias.detach()
        return Projection(rows(teacher.hidden.detach()), teacher.weight.detach(), bias)
    if isinstance(teacher, TopK):
        return TopK(*(rows(part.detach()) for part in teacher))
    return rows(teacher.detach())


def _part(teacher: Any, part: slice) -> Any:
    """A few rows of a teacher: logits, or a top k."""
    if isinstance(teacher, Projection):
        return F.linear(teacher.hidden[part], teacher.weight, teacher.bias)
    return TopK(*(values[part] for values in teacher)) if isinstance(teacher, TopK) else teacher[part]
