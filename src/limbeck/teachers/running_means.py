"""Running means of what a model says from batch to batch, kept for its own labels.

Each is read with the present batch counted in, while the losses are computed, and moved on once an update has been
made. Several processes share the mean over all of them; of a batch that is split into micro-batches each part is read
with its own mean, and the whole batch's is remembered.
"""

from collections.abc import Callable
from typing import ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.precision import keep_dtype


class BatchMeans(nn.Module):
    """The mean of the last batch means of a model's predictions: its marginal over classes.

    A queue as in the released code of ShrinkMatch (arXiv 2308.06777) and SimMatch (arXiv 2203.06915), where it is
    what distribution alignment divides by.

    Args:
        length: number of batches that are remembered, the present one included.
        num_classes: C.

    Raises:
        LimbeckError: no batches or no classes.
    """

    synchronised: ClassVar[bool] = False
    """Equal on all processes without being broadcast."""

    queue: Tensor
    num_batches: Tensor

    def __init__(self, length: int, num_classes: int) -> None:
        super().__init__()
        if length < 1 or num_classes < 1:
            raise LimbeckError(f"a queue of {length} batches and {num_classes} classes holds nothing")
        self.register_buffer("queue", torch.zeros(length, num_classes))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, probabilities: Tensor) -> Tensor:
        """The marginal [C] with a batch of ``probabilities`` [B, C] counted in; nothing is remembered."""
        filled = (self.num_batches + 1).clamp(max=len(self.queue))
        return self._with(probabilities).sum(0) / filled

    @torch.no_grad()
    def update(self, probabilities: Tensor) -> None:
        """Remember a batch of ``probabilities`` [B, C] in the place of the oldest."""
        self.queue.copy_(self._with(probabilities))
        self.num_batches += 1

    def _with(self, probabilities: Tensor) -> Tensor:
        place = torch.arange(len(self.queue), device=self.queue.device) == self.num_batches % len(self.queue)
        return torch.where(place[:, None], _mean(probabilities), self.queue)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_dtype(function), recurse)


class MovingMean(nn.Module):
    """A moving average of a batch mean: ``m <- d m + (1 - d) mean(values)``, beginning with the first batch.

    Args:
        decay: d, in [0, 1]; None is the plain mean over all batches, ``d = t / (t + 1)`` after t of them.

    Raises:
        LimbeckError: a decay out of range.
    """

    synchronised: ClassVar[bool] = False
    """Equal on all processes without being broadcast."""

    average: Tensor
    num_batches: Tensor

    def __init__(self, decay: float | None) -> None:
        super().__init__()
        if decay is not None and not 0 <= decay <= 1:
            raise LimbeckError(f"decay of a moving mean must be in [0, 1], got {decay}")
        self.decay = decay
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, values: Tensor) -> Tensor:
        """The average, scalar, with a batch of ``values`` [B] counted in; nothing is remembered."""
        decay = self.num_batches / (self.num_batches + 1.0)
        if self.decay is not None:
            decay = decay.sign() * self.decay  # none of what was not there before the first batch
        return torch.lerp(_mean(values), self.average, decay)

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Remember a batch of ``values`` [B]."""
        self.average.copy_(self(values))
        self.num_batches += 1

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_dtype(function), recurse)


def _mean(values: Tensor) -> Tensor:
    """The mean over the batch, of all processes together; each holds as many."""
    mean = values.float().mean(0)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean
