"""A queue of keys: what contrastive losses are told from beside the batch."""

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.precision import keep_dtype
from limbeck.teachers.gather import gather_batch


class KeyQueue(nn.Module):
    """The last keys (MoCo, arXiv 1911.05722, section 3.1), each with a number: its class, or which sample it is of.

    Empty at first: nothing is told from keys that were never seen. Part of ``state_dict``. With several processes each
    must push at the same time, as many; every process then holds the whole queue.

    Args:
        size: number of keys, Q.
        features: D.

    Attributes:
        keys: float32 [Q, D], zeros where there is none yet.
        labels: int64 [Q], -1 where there is none yet.

    Raises:
        LimbeckError: no keys or no features.
    """

    synchronised: ClassVar[bool] = False
    """Equal on all processes without being broadcast."""

    keys: Tensor
    labels: Tensor
    pushed: Tensor

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        if size < 1 or features < 1:
            raise LimbeckError(f"a queue of {size} keys of {features} numbers holds nothing")
        self.register_buffer("keys", torch.zeros(size, features))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor, labels: Tensor) -> None:
        """Put keys [B, D] with their numbers, int64 [B] from 0 on, in the place of the oldest."""
        size = len(self.labels)
        every, numbers = gather_batch(keys.detach())[-size:], gather_batch(labels)[-size:]
        places = (self.pushed + torch.arange(len(every), device=every.device)) % size
        self.keys.index_copy_(0, places, every.to(self.keys.dtype))
        self.labels.index_copy_(0, places, numbers)
        self.pushed += len(every)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_dtype(function), recurse)
