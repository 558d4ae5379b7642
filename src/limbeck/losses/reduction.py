"""From one value a sample to one number: weighted sums, and means that stay exact when a batch is cut up."""

from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError, nearest

Reduction: TypeAlias = Literal["mean", "sum", "none"]
Values: TypeAlias = Float[Tensor, "*batch"]
Weight: TypeAlias = Float[Tensor, "*batch"] | Bool[Tensor, "*batch"]
"""What an entry counts: >= 0, and 0 (or False) where it is not used."""
Loss: TypeAlias = Float[Tensor, "*batch"] | Float[Tensor, ""]
"""One value an entry (``reduction="none"``), or their mean or sum."""


class Mean(NamedTuple):
    """A mean that has not been divided yet.

    Micro-batches and processes add up ``total`` and ``count`` and divide once; the mean of their means would
    be wrong wherever they hold different numbers of tokens, pixels or selected samples.

    Attributes:
        total: sum of weight x value, scalar; carries the gradient.
        count: sum of the weights, scalar; where there are none the number of values, which the host knows.
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""] | float  # type: ignore[assignment]  # hides tuple.count, which nobody needs here

    @classmethod
    def of(cls, values: Values, weight: Weight | None = None) -> "Mean":
        """Sum ``values`` and their ``weight`` (1 everywhere when None)."""
        return _mean(_weighted(values, weight), weight)

    def times(self, factor: float | int | Float[Tensor, ""]) -> "Mean":
        """The same mean times a factor: the total is scaled, the count is not."""
        return Mean(self.total * factor, self.count)

    def detach(self) -> "Mean":
        """The same mean without its gradient."""
        return Mean(self.total.detach(), self.count.detach() if isinstance(self.count, Tensor) else self.count)

    @property
    def value(self) -> Float[Tensor, ""]:
        """``total / count``, and 0 with a zero gradient where nothing was counted."""
        if not isinstance(self.count, Tensor):
            return self.total / (self.count or 1.0)
        # Not where() around the quotient: that would let 0/0 through to the gradient. An empty total is 0.
        return self.total / (self.count + (self.count == 0))


def reduce(
    values: Values, weight: Weight | None = None, reduction: Reduction = "mean", *, finite: bool = False
) -> Loss:
    """Reduce one value an entry, of any leading dimensions, with one weight an entry.

    Args:
        values: [*batch]; half precision is summed in float32.
        weight: [*batch] >= 0. An entry of weight 0 counts for nothing, even if its value is infinite or NaN.
        reduction: ``"mean"`` is ``sum(weight * values) / sum(weight)``, 0 for an empty selection;
            ``"sum"`` is ``sum(weight * values)``; ``"none"`` is ``weight * values``, [*batch].
        finite: whether the values are known to be finite where the weight is 0, which saves looking.

    Raises:
        LimbeckError: unknown reduction, or a weight of another shape than the values.
    """
    if reduction == "mean":
        if weight is None and values.numel():
            return in_full(values).mean()
        return _mean(_weighted(values, weight, finite), weight).value
    if reduction == "sum":
        return _weighted(values, weight, finite).sum()
    if reduction == "none":
        return _weighted(values, weight, finite)
    known = ("mean", "sum", "none")
    raise LimbeckError(f"reduction is {reduction!r}, must be one of {known}.{nearest(reduction, known)}")


def _mean(weighted: Values, weight: Weight | None) -> Mean:
    if weight is None:
        return Mean(weighted.sum(), float(weighted.numel()))
    return Mean(weighted.sum(), weight.sum(dtype=weighted.dtype))


def _weighted(values: Values, weight: Weight | None, finite: bool = False) -> Values:
    values = in_full(values)
    if weight is None:
        return values
    if weight.shape != values.shape:
        raise LimbeckError(
            f"weight has shape {list(weight.shape)}, but there is one value for each of {list(values.shape)}"
        )
    if weight.dtype == torch.bool:
        return torch.where(weight, values, 0.0)
    if finite:
        return values * weight
    # 0 x inf is NaN: what is not used must not spoil the sum.
    unused = weight.logical_not()  # weight == 0 in a third of the time
    if weight.requires_grad:
        # Finite values are left alone, so that the gradient with respect to a weight of 0 is the value (learning to
        # reweight starts there).
        unused = unused & ~values.isfinite()
    return values.masked_fill(unused, 0.0) * weight


def read_labels(labels: Int[Tensor, "*batch"], weight: Weight | None, unread: int = 0) -> Int[Tensor, "*batch"]:
    """The labels, int64, with ``unread`` in the place of those that are not read: where the weight is 0 they may be -1.

    A weight that is learned has a gradient there, the value of the label: of these only -1 is replaced.
    """
    labels = labels.long()
    if weight is None:
        return labels
    unused = weight.logical_not()
    if weight.requires_grad:
        unused = unused & (labels < 0)
    return labels.masked_fill(unused, unread)


def in_full(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision as float32; float32 and float64 stay what they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
