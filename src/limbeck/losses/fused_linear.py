"""Losses of logits that are never held at once: the output layer and the loss, a few rows at a time.

A language model's logits are its largest tensor: 4,096 tokens of 32,768 words are half a gigabyte, and a divergence
between two models holds several of that size. Here rows are projected, compared and differentiated chunk by chunk, and
only the gradients of the hidden states and of the output layer remain (gradient in forward, as in Liger's chunked
losses). The work is that of the plain computation: nothing is computed twice. What Liger's Triton kernels can do is
left to them where they are installed, see :mod:`limbeck.losses.liger`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.labels.types import TopK
from limbeck.losses import liger
from limbeck.losses.divergence import cross_entropy, forward_kl
from limbeck.losses.reduction import Loss, Mean, Weight

CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""Logits held at a time: few enough to stay near the cache, rows enough for fast products."""


class Projection(NamedTuple):
    """Logits that are not computed yet: ``hidden @ weight.T + bias``.

    Attributes:
        hidden: [*batch, H], the inputs of the output layer.
        weight: [C, H]; None where ``hidden`` are the logits.
        bias: [C], or None.
    """

    hidden: Float[Tensor, "*batch width"]
    weight: Float[Tensor, "classes width"] | None = None
    bias: Float[Tensor, " classes"] | None = None

    @property
    def logits(self) -> Float[Tensor, "*batch classes"]:
        """All of them."""
        return self.hidden if self.weight is None else F.linear(self.hidden, self.weight, self.bias)

    def cast(self) -> "Projection":
        """As autocast casts the factors of a product: once, and not chunk by chunk."""
        kind = self.hidden.device.type
        if self.weight is None or self.hidden.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
            return self
        low = torch.get_autocast_dtype(kind)
        bias = None if self.bias is None else self.bias.to(low)
        return Projection(self.hidden.to(low), self.weight.to(low), bias)


def fused_linear(logits: Projection, loss: Callable[[Tensor, slice], Tensor], chunk: int | None = None) -> Tensor:
    """The sum of a loss over rows whose logits are computed a chunk at a time.

    Gradients reach the tensors of ``logits`` and nothing else: whatever else the loss reads is a constant. They
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
    layer = None if weight is None else list(weight.shape)
    if hidden.ndim != 2 or (layer and (len(layer) != 2 or hidden.shape[1] != layer[1])):
        raise LimbeckError(
            f"hidden is {list(hidden.shape)} and weight {layer}; expected [rows, width], [classes, width]"
        )
    if chunk is None:
        classes = layer[0] if layer else hidden.shape[1]
        chunk = max(1, CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"]) // classes)
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
    rows: Mapping[str, Tensor] | None = None,
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
        rows: further arguments of the divergence that have an entry a row, [*batch, ...], by name.
        chunk: rows at a time, see :func:`fused_linear`.

    Raises:
        LimbeckError: hard out of range or without labels, or shapes that do not fit.
    """
    if not 0 <= hard <= 1 or (hard and labels is None):
        raise LimbeckError(f"hard is {hard}, must be between 0 and 1, and 0 where no labels are given")
    batch = student.hidden.ndim - 1
    given = {name: values.shape[:batch] for name, values in (rows or {}).items()}
    pick = _selection(student, weight, labels, {"teacher": _first(teacher).shape[:-1], **given})
    own, other = student._replace(hidden=pick(student.hidden)), _detach(teacher, pick)
    weights = own.hidden.new_ones(len(own.hidden)) if weight is None else pick(weight)
    target = None if labels is None else pick(labels)
    more = {name: pick(values) for name, values in (rows or {}).items()}
    count = weights.sum(dtype=torch.float32)
    if not (hard or more) and chunk is None and _alike(weight) and isinstance(other, Projection):
        total = liger.divergence_sum(own, other, divergence)
        if total is not None:
            return Mean(total, count)

    def loss(logits: Tensor, part: slice) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        if hard < 1:
            options = {name: values[part] for name, values in more.items()}
            soft = divergence(logits, _part(other, part), **options, weight=weights[part], reduction="sum")
            total = total + (1 - hard) * soft
        if hard > 0:
            assert target is not None
            total = total + hard * cross_entropy(logits, target[part], weight=weights[part], reduction="sum")
        return total

    return Mean(fused_linear(own, loss, chunk), count)


def fused_linear_cross_entropy(
    student: Projection, labels: Int[Tensor, "*batch"], *, weight: Weight | None = None, chunk: int | None = None
) -> Mean:
    """Cross-entropy of the labels, meaned over the rows that count, without the whole logits.

    Args:
        student: its hidden states and output layer.
        labels: class indices [*batch]; where the weight is 0 they are not read.
        weight: [*batch] >= 0, 0 = not used: rows without weight are not even projected.
        chunk: rows at a time, see :func:`fused_linear`.

    Raises:
        LimbeckError: shapes that do not fit.
    """
    pick = _selection(student, weight, labels, {})
    own, target = student._replace(hidden=pick(student.hidden)), pick(labels)
    weights = own.hidden.new_ones(len(own.hidden)) if weight is None else pick(weight)
    count = weights.sum(dtype=torch.float32)
    if chunk is None and _alike(weight):
        total = liger.cross_entropy_sum(own, target)
        if total is not None:
            return Mean(total, count)

    def loss(logits: Tensor, part: slice) -> Tensor:
        found: Tensor = cross_entropy(logits, target[part], weight=weights[part], reduction="sum")
        return found

    return Mean(fused_linear(own, loss, chunk), count)


def _alike(weight: Tensor | None) -> bool:
    """Whether all rows that are used count the same."""
    return weight is None or weight.dtype == torch.bool


def _selection(
    student: Projection, weight: Tensor | None, labels: Tensor | None, given: Mapping[str, torch.Size]
) -> Callable[[Tensor], Tensor]:
    """What makes the used rows [N, ...] of a tensor [*batch, ...]; all must have the student's rows."""
    shape = student.hidden.shape[:-1]
    own = {"labels": labels, "weight": weight}
    for name, other in {**given, **{name: values.shape for name, values in own.items() if values is not None}}.items():
        if other != shape:
            raise LimbeckError(f"the student has rows {list(shape)} and the {name} {list(other)}, must be the same")
    used = None
    if weight is not None and not torch.compiler.is_compiling():  # a compiler knows no number of rows but all
        used = weight.reshape(-1).nonzero()[:, 0]

    def pick(values: Tensor) -> Tensor:
        flat = values.reshape(-1, *values.shape[len(shape) :])
        return flat if used is None else flat[used]

    return pick


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, loss: Callable[..., Tensor], chunk: int
    ) -> Tensor:
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        kind = torch.promote_types(hidden.dtype, torch.float32)
        gradients = [
            torch.empty_like(hidden) if of_hidden else None,
            torch.zeros_like(weight, dtype=kind) if weight is not None and of_weight else None,
            torch.zeros_like(bias, dtype=kind) if bias is not None and of_bias else None,
        ]
        ctx.kinds = [None if values is None else values.dtype for values in (hidden, weight, bias)]
        hidden, weight, bias = Projection(hidden, weight, bias).cast()
        total = hidden.new_zeros((), dtype=kind)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = Projection(hidden[rows], weight, bias).logits
            if not any(ctx.needs_input_grad[:3]):
                total += loss(logits, rows)
                continue
            gradient, value = torch.func.grad_and_value(loss)(logits, rows)
            total += value
            if gradients[0] is not None:
                gradients[0][rows] = gradient if weight is None else gradient @ weight.to(gradient.dtype)
            if gradients[1] is not None and gradient.dtype == hidden.dtype == kind:
                gradients[1].addmm_(gradient.mT, hidden[rows])  # without a second tensor of its size
            elif gradients[1] is not None:
                gradients[1] += gradient.mT @ hidden[rows].to(gradient.dtype)
            if gradients[2] is not None:
                gradients[2] += gradient.sum(0)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        saved = zip(ctx.saved_tensors, ctx.kinds, strict=True)
        return *(None if g is None else (outer * g).to(kind) for g, kind in saved), None, None


def _first(teacher: Projection | Tensor | TopK) -> Tensor:
    return teacher if isinstance(teacher, Tensor) else teacher[0]


def _detach(teacher: Any, pick: Callable[[Tensor], Tensor]) -> Any:
    """The rows of a teacher that are used, without gradient."""
    if isinstance(teacher, Projection):
        layer = (None if values is None else values.detach() for values in teacher[1:])
        return Projection(pick(teacher.hidden.detach()), *layer).cast()
    if isinstance(teacher, TopK):
        return TopK(*(pick(part.detach()) for part in teacher))
    return pick(teacher.detach())


def _part(teacher: Any, part: slice) -> Any:
    """A few rows of a teacher: logits, or a top k."""
    if isinstance(teacher, Projection):
        return teacher._replace(hidden=teacher.hidden[part]).logits
    return TopK(*(values[part] for values in teacher)) if isinstance(teacher, TopK) else teacher[part]
