"""Endless streams of training batches, each a pure function of (seed, batch number)."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from limbeck.data.data import Batch, Records
from limbeck.data.random import derive, permutations
from limbeck.errors import LimbeckError


class Stream:
    """Shuffled training batches without an end; batch ``b`` depends on the seed and ``b`` only.

    Position ``p`` of the stream lies in epoch ``p // N`` and is the sample at ``permutation(epoch)[p % N]``;
    batch ``b`` holds the positions ``b * batch_size`` to ``(b + 1) * batch_size - 1``. So every batch is
    full, and one may hold the end of an epoch and the beginning of the next.

    Args:
        samples: what is drawn from, N samples.
        batch_size: samples a batch, over all processes.
        seed: the seed of the run.
        views: key in the batch -> name of a view (for images :mod:`limbeck.data.views`).
        name: streams of one run with different names have different orders.
        flip: whether views may mirror images.

    Raises:
        LimbeckError: an unknown view, a view that is asked for twice, or a batch size below one.
    """

    def __init__(
        self,
        samples: Records,
        batch_size: int,
        seed: int,
        views: Mapping[str, str] = MappingProxyType({}),
        name: str = "train",
        flip: bool = False,
    ) -> None:
        if batch_size < 1:
            raise LimbeckError(f"stream {name!r}: batch_size {batch_size}, expected at least 1")
        taken: dict[str, str] = {}
        for key, view in views.items():
            samples.check_view(view)
            if view != "none" and view in taken:
                raise LimbeckError(
                    f"stream {name!r}: {taken[view]!r} and {key!r} are both the view {view!r}, which gives "
                    f"the same images twice; call the second '{view}:2' for draws of its own"
                )
            taken[view] = key
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.views, self.name, self.flip = dict(views), name, flip
        self._orders: dict[int, tuple[Tensor, ...]] = {}

    def _order(self, epoch: int) -> Tensor:
        # The orders of a few samples are made many epochs at a time: one would cost as much as a small loss.
        count = len(self.samples)
        together = 1 + 4096 // count
        block, place = divmod(epoch, together)
        orders = self._orders.get(block)
        if orders is None:
            keys = [derive(self.seed, "order", self.name, block * together + n) for n in range(together)]
            orders = torch.from_numpy(permutations(keys, count)).unbind()
            # A batch needs two neighbouring epochs at most, unless it is larger than the data set.
            self._orders = {past: kept for past, kept in self._orders.items() if past == block - 1}
            self._orders[block] = orders
        return orders[place]

    def batch(self, number: int, *, rank: int = 0, world: int = 1) -> Batch:
        """The ``rank``-th part of batch ``number``: its samples ``rank``, ``rank + world``, ...

        Returns:
            What the samples hold, each view under its key, and ``epoch`` int64 [B]; B = batch_size / world. For
            images: float32 [B, C, H, W] in [0, 1] a view, ``label`` and ``index`` int64 [B], and
            ``hidden_label`` int64 [B] where it is known.
        """
        positions, epochs = self.places(number, self.batch_size)
        if world > 1:
            positions, epochs = positions[rank::world], epochs[rank::world]
        batch = self.samples.augment(
            self.samples.fetch(positions), self.views, seed=self.seed, epochs=epochs, flip=self.flip
        )
        batch["epoch"] = epochs
        return batch

    def places(self, number: int, size: int) -> tuple[Tensor, Tensor]:
        """Position and epoch, int64 [size] each, of the samples from ``number * size`` on."""
        count = len(self.samples)
        epoch, offset = divmod(number * size, count)
        if offset + size <= count:
            positions = self._order(epoch)[offset : offset + size]
            epochs = torch.full((size,), epoch)
        else:
            pieces: list[Tensor] = []
            lengths: list[int] = []
            missing = size
            while missing:
                pieces.append(self._order(epoch + len(pieces))[offset : offset + missing])
                lengths.append(len(pieces[-1]))
                missing -= lengths[-1]
                offset = 0
            positions = torch.cat(pieces)
            epochs = torch.cat([torch.full((length,), epoch + n) for n, length in enumerate(lengths)])
        return positions, epochs

    def batches(self, start: int, stop: int, *, rank: int = 0, world: int = 1, workers: int = 0) -> Iterator[Batch]:
        """Batches ``start`` to ``stop`` - 1, see :meth:`batch`.

        Args:
            start: number of the first batch, counted from the beginning of the run.
            stop: number of the batch after the last one.
            rank: which of the processes this is.
            world: how many processes share each batch.
            workers: processes that prepare batches ahead; the batches are the same for any number.

        Raises:
            LimbeckError: the batch size cannot be divided among the processes, or an image cannot be read.
        """
        if self.batch_size % world:
            raise LimbeckError(
                f"stream {self.name!r}: a batch of {self.batch_size} cannot be divided among {world} "
                f"processes; use a multiple of {world}"
            )
        if workers == 0:
            return (self.batch(number, rank=rank, world=world) for number in range(start, stop))
        return self._from_workers(start, stop, rank, world, workers)

    def _from_workers(self, start: int, stop: int, rank: int, world: int, workers: int) -> Iterator[Batch]:
        loader = DataLoader(
            _Numbered(self, rank, world),
            sampler=range(start, stop),
            batch_size=None,
            num_workers=workers,
            generator=torch.Generator(),  # without one, starting the workers draws from the global generator
        )
        for batch in loader:
            if isinstance(batch, LimbeckError):
                raise batch
            yield batch


class _Numbered(Dataset[Batch | LimbeckError]):
    """Batch number -> batch, for the workers of a DataLoader."""

    def __init__(self, stream: Stream, rank: int, world: int) -> None:
        self.stream, self.rank, self.world = stream, rank, world

    def __getitem__(self, number: int) -> Batch | LimbeckError:
        try:
            return self.stream.batch(number, rank=self.rank, world=self.world)
        except LimbeckError as error:  # raised in a worker it would arrive with the worker's traceback as its message
            return error


def eval_batches(samples: Records, batch_size: int) -> Iterator[Batch]:
    """All samples in their order, without augmentation; the last batch may be smaller."""
    for positions in torch.arange(len(samples)).split(batch_size):
        yield samples.fetch(positions)
