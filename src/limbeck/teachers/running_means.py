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

    def forward(self, probabilities: Tensor) -> Tensor:
        """The marginal [C] with a batch of ``probabilities`` [B, C] counted in; nothing is remembered."""
        count, length = int(self.num_batches), len(self.queue)
        return self.queue.select_scatter(_mean(probabilities), 0, count % length).sum(0) / min(count + 1, length)

    def update(self, probabilities: Tensor) -> None:
        """Remember a batch of ``probabilities`` [B, C] in the place of the oldest."""
        self.queue.select(0, int(self.num_batches) % len(self.queue)).copy_(_mean(probabilities))
        self.num_batches.add_(1)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(_but_the_count(function, self.num_batches), recurse)


class MovingMean(nn.Module):
    """A moving average of a batch mean: ``m <- d m + (1 - d) mean(values)``, beginning with the first batch.

    Args:
        decay: d, in [0, 1]; None is the plain mean over all batches, ``d = t / (t + 1)`` after t of them.
        shape: of a value: () for numbers, (n,) for n of them at once.
        restart: number of batches after which it begins anew; None for never.

    Raises:
        LimbeckError: a decay out of range, or a restart after no batch.
    """

    synchronised: ClassVar[bool] = False
    """Equal on all processes without being broadcast."""

    average: Tensor
    num_batches: Tensor

    def __init__(self, decay: float | None, shape: tuple[int, ...] = (), restart: int | None = None) -> None:
        super().__init__()
        if decay is not None and not 0 <= decay <= 1:
            raise LimbeckError(f"decay of a moving mean must be in [0, 1], got {decay}")
        if restart is not None and restart < 1:
            raise LimbeckError(f"a moving mean cannot begin anew after {restart} batches")
        self.decay = decay
        self.restart = restart
        self.register_buffer("average", torch.zeros(shape))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, values: Tensor) -> Tensor:
        """The average [*shape] with a batch of ``values`` [B, *shape] counted in; nothing is remembered."""
        return torch.lerp(_mean(values), self.average, self._next_decay())

    def update(self, values: Tensor) -> None:
        """Remember a batch of ``values`` [B, *shape]."""
        torch.lerp(_mean(values), self.average, self._next_decay(), out=self.average)
        self.num_batches.add_(1)

    def _next_decay(self) -> float:
        count = int(self.num_batches)
        if self.restart is not None:
            count %= self.restart
        if self.decay is None:
            return count / (count + 1)
        return self.decay if count else 0.0  # none of what was not there before the first batch

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(_but_the_count(function, self.num_batches), recurse)


def _but_the_count(function: Callable[[Tensor], Tensor], count: Tensor) -> Callable[[Tensor], Tensor]:
    """``function`` for all tensors but the count, which stays on the host: reading it there waits for no device."""
    changed = keep_dtype(function)
    return lambda tensor: tensor if tensor is count else changed(tensor)


def _mean(values: Tensor) -> Tensor:
    """The mean over the batch, of all processes together; each holds as many."""
    mean = values.detach().mean(0, dtype=torch.float32)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean
