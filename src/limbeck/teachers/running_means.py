"""Running means of what a model says from batch to batch, kept for its own labels.

Each is read with the present batch counted in, while the losses are computed, and moved on once an update has been
made. Several processes share the mean over all of them; of a batch that is split into micro-batches each part is read
with its own mean, and the whole batch's is remembered.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Self

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
        # The same number on the host: arithmetic with it costs nothing there, and reading the buffer waits for the
        # device.
        self._batches = 0
        self.register_load_state_dict_post_hook(_count_again)

    @torch.no_grad()
    def forward(self, probabilities: Tensor) -> Tensor:
        """The marginal [C] with a batch of ``probabilities`` [B, C] counted in; nothing is remembered."""
        queue = self.queue.clone()
        queue[self._batches % len(queue)] = _mean(probabilities)
        return queue.sum(0) / min(self._batches + 1, len(queue))

    @torch.no_grad()
    def update(self, probabilities: Tensor) -> None:
        """Remember a batch of ``probabilities`` [B, C] in the place of the oldest."""
        self.queue[self._batches % len(self.queue)] = _mean(probabilities)
        self._batches += 1
        self.num_batches += 1

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
        self._batches = 0  # the same number on the host
        self.register_load_state_dict_post_hook(_count_again)

    @torch.no_grad()
    def forward(self, values: Tensor) -> Tensor:
        """The average, scalar, with a batch of ``values`` [B] counted in; nothing is remembered."""
        return torch.lerp(_mean(values), self.average, self._next_decay())

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Remember a batch of ``values`` [B]."""
        torch.lerp(_mean(values), self.average, self._next_decay(), out=self.average)
        self._batches += 1
        self.num_batches += 1

    def _next_decay(self) -> float:
        if self.decay is None:
            return self._batches / (self._batches + 1)
        return self.decay if self._batches else 0.0  # none of what was not there before the first batch

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_dtype(function), recurse)


def _count_again(module: nn.Module, incompatible: Any) -> None:
    if isinstance(module, BatchMeans | MovingMean):
        module._batches = int(module.num_batches)


def _mean(values: Tensor) -> Tensor:
    """The mean over the batch, of all processes together; each holds as many."""
    mean = values.float().mean(0)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean
