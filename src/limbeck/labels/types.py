"""What a label is: a target, how much it counts, and which classes it speaks of."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError


class TopK(NamedTuple):
    """The k most probable classes of each entry, and the probability of all the others together.

    Attributes:
        indices: int64 [*batch, k], distinct within a row.
        log_probs: float [*batch, k], natural logarithms, -inf for a probability of 0.
        rest: float [*batch] >= 0, probability outside ``indices``.
    """

    indices: Tensor
    log_probs: Tensor
    rest: Tensor


@dataclass(frozen=True)
class Labels:
    """A target with a weight: what selection, refinement and mixing take and return.

    The target is one of four kinds: class probabilities (float [*batch, C]), class indices (int64 [*batch],
    -1 = unknown, only where the weight is 0), the top k classes (:class:`TopK`), or real values
    (float [*batch]). Shapes are checked here; :meth:`check` also reads the numbers.

    Attributes:
        target: see above.
        weight: float [*batch] >= 0, 0 = not used; None = 1 everywhere.
        classes: bool [C] or [*batch, C], True for the classes that the label speaks of; None = all.

    Raises:
        LimbeckError: a weight, a class mask or the parts of a top-k target whose shape or type does not fit.
    """

    target: Tensor | TopK
    weight: Tensor | None = None
    classes: Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.target, TopK):
            _check_top_k(self.target)
        elif self.target.dtype != torch.int64 and not self.target.is_floating_point():
            raise LimbeckError(
                f"a target must be floating point (probabilities, values) or int64 (indices), not {self.target.dtype}"
            )
        if self.weight is not None:
            self._check_weight(self.weight)
        if self.classes is not None:
            self._check_classes(self.classes)

    @property
    def batch_shape(self) -> torch.Size:
        """[*batch]. A float target without a weight counts as probabilities unless it has one dimension."""
        if isinstance(self.target, TopK):
            return self.target.rest.shape
        if self.weight is not None:
            return self.weight.shape
        if self.target.is_floating_point() and self.target.ndim > 1:
            return self.target.shape[:-1]
        return self.target.shape

    @property
    def weights(self) -> Tensor:
        """The weight, float [*batch]; ones where it is None."""
        if self.weight is not None:
            return self.weight
        device = self.target.rest.device if isinstance(self.target, TopK) else self.target.device
        return torch.ones(self.batch_shape, dtype=self._dtype, device=device)

    @property
    def _dtype(self) -> torch.dtype:
        """Of weights that are not given."""
        target = self.target.log_probs if isinstance(self.target, TopK) else self.target
        return target.dtype if target.is_floating_point() else torch.get_default_dtype()

    def weighted(self, factor: Tensor) -> "Labels":
        """The same target with its weight multiplied by ``factor`` (float or bool [*batch])."""
        if factor.shape != self.batch_shape:
            raise LimbeckError(
                f"factor has shape {list(factor.shape)}, but the labels have shape {list(self.batch_shape)}"
            )
        whole = self.weight is None and factor.dtype == torch.bool
        return Labels(self.target, factor.to(self._dtype) if whole else self.weights * factor, self.classes)

    def probabilities(self, num_classes: int) -> Tensor:
        """The target as class probabilities, float [*batch, num_classes].

        Raises:
            LimbeckError: real values, or probabilities of another number of classes.
        """
        if isinstance(self.target, TopK):
            return to_dense(self.target, num_classes)
        if not self.target.is_floating_point():
            return one_hot(self.target, num_classes)
        if self.target.ndim == len(self.batch_shape):
            raise LimbeckError(f"the target holds real values {list(self.target.shape)}, no class probabilities")
        if self.target.shape[-1] != num_classes:
            raise LimbeckError(
                f"the target holds probabilities of {self.target.shape[-1]} classes, not of {num_classes}"
            )
        return self.target

    def predicted(self) -> Tensor:
        """The most probable class, int64 [*batch].

        Raises:
            LimbeckError: the target holds real values.
        """
        if isinstance(self.target, TopK):
            best = self.target.log_probs.argmax(-1, keepdim=True)
            return self.target.indices.gather(-1, best).squeeze(-1)
        if not self.target.is_floating_point():
            return self.target
        if self.target.ndim == len(self.batch_shape):
            raise LimbeckError(f"the target holds real values {list(self.target.shape)}, no classes")
        return self.target.argmax(-1)

    def to(self, device: torch.device | str) -> "Labels":
        """The same labels on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        target = TopK(*map(move, self.target)) if isinstance(self.target, TopK) else move(self.target)
        return replace(
            self,
            target=target,
            weight=None if self.weight is None else move(self.weight),
            classes=None if self.classes is None else move(self.classes),
        )

    def check(self, num_classes: int) -> "Labels":
        """Read the numbers (this waits for the device) and return the labels unchanged.

        Raises:
            LimbeckError: weights that are negative or not finite; indices outside [0, C), or -1 where the
                weight is not 0; probabilities that are negative, not finite or do not sum to 1 within 1e-3
                (the precision of float16) where the weight is not 0. The first position is named.
        """
        weights = self.weights
        _refuse(~((weights >= 0) & weights.isfinite()), "weight is negative or not finite", weights)
        used = weights != 0
        if isinstance(self.target, TopK):
            indices = self.target.indices
            _refuse((indices < 0) | (indices >= num_classes), f"index outside [0, {num_classes})", indices)
            mass = self.target.log_probs.double().exp().sum(-1) + self.target.rest.double()
            _refuse(used & ~((mass - 1).abs() <= 1e-3), "probabilities do not sum to 1 but to", mass)
        elif not self.target.is_floating_point():
            outside = (self.target < -1) | (self.target >= num_classes) | ((self.target < 0) & used)
            _refuse(outside, f"label outside [0, {num_classes})", self.target)
        elif self.target.ndim > len(self.batch_shape):
            probabilities = self.probabilities(num_classes)
            _refuse(used[..., None] & ~(probabilities >= 0), "probability is negative or NaN", probabilities)
            mass = probabilities.double().sum(-1)
            _refuse(used & ~((mass - 1).abs() <= 1e-3), "probabilities do not sum to 1 but to", mass)
        return self

    def _check_weight(self, weight: Tensor) -> None:
        if not weight.is_floating_point():
            raise LimbeckError(f"a weight must be floating point, not {weight.dtype}")
        if isinstance(self.target, TopK):
            fitting = [self.target.rest.shape]
        elif self.target.is_floating_point():
            fitting = [self.target.shape[:-1], self.target.shape]
        else:
            fitting = [self.target.shape]
        if weight.shape not in fitting:
            wanted = " or ".join(str(list(shape)) for shape in fitting)
            raise LimbeckError(f"weight has shape {list(weight.shape)}, the target wants {wanted}")

    def _check_classes(self, classes: Tensor) -> None:
        if classes.dtype != torch.bool:
            raise LimbeckError(f"the mask over classes must be bool, not {classes.dtype}")
        if classes.shape[:-1] not in (torch.Size(), self.batch_shape) or classes.ndim == 0:
            raise LimbeckError(
                f"the mask over classes has shape {list(classes.shape)}, it must be [C] or {[*self.batch_shape, 'C']}"
            )


def one_hot(
    labels: Int[Tensor, "*batch"], num_classes: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch classes"]:
    """Indices as probabilities; a negative index (unknown) gives a row of zeros.

    An index >= ``num_classes`` raises torch's own out-of-bounds error: looking at the values first would make
    the host wait for the device.
    """
    probabilities = torch.zeros(*labels.shape, num_classes, dtype=dtype, device=labels.device)
    index = labels.long().unsqueeze(-1)
    return probabilities.scatter(-1, index.clamp(min=0), (index >= 0).to(dtype))


def top_k(probabilities: Float[Tensor, "*batch classes"], k: int) -> TopK:
    """Keep the k most probable classes of each row, most probable first.

    ``rest`` is the sum of what is left out, not 1 minus what is kept: it stays exact for confident rows.

    Raises:
        LimbeckError: k outside [1, number of classes].
    """
    num_classes = probabilities.shape[-1]
    if not 1 <= k <= num_classes:
        raise LimbeckError(f"k is {k}, must be between 1 and the number of classes, {num_classes}")
    kept = probabilities.topk(k, dim=-1)
    rest = probabilities.scatter(-1, kept.indices, 0.0).sum(-1)
    return TopK(kept.indices, kept.values.log(), rest)


def to_dense(labels: TopK, num_classes: int) -> Float[Tensor, "*batch classes"]:
    """All classes' probabilities, [*batch, C], with ``rest`` spread evenly over the classes left out.

    Raises:
        LimbeckError: fewer classes than the labels keep.
    """
    left_out = num_classes - labels.indices.shape[-1]
    if left_out < 0:
        raise LimbeckError(f"labels keep {labels.indices.shape[-1]} classes, more than num_classes, {num_classes}")
    probabilities = (labels.rest / max(left_out, 1)).unsqueeze(-1).expand(*labels.rest.shape, num_classes)
    return probabilities.scatter(-1, labels.indices, labels.log_probs.exp())


def _check_top_k(target: TopK) -> None:
    indices, log_probs, rest = target
    if indices.dtype != torch.int64:
        raise LimbeckError(f"top-k indices must be int64, not {indices.dtype}")
    if not (log_probs.is_floating_point() and rest.is_floating_point()):
        raise LimbeckError(f"top-k log_probs and rest must be floating point, not {log_probs.dtype} and {rest.dtype}")
    if indices.ndim == 0 or indices.shape != log_probs.shape or rest.shape != indices.shape[:-1]:
        raise LimbeckError(
            "top-k wants indices [*batch, k], log_probs [*batch, k] and rest [*batch], not "
            f"{list(indices.shape)}, {list(log_probs.shape)} and {list(rest.shape)}"
        )


def _refuse(wrong: Tensor, what: str, values: Tensor) -> None:
    if wrong.any():
        first = wrong.nonzero()[0].tolist()
        raise LimbeckError(f"labels{first}: {what}: {values[tuple(first)].item()}")
