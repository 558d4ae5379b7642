"""Several stored views of each image in a batch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from limbeck.data import views as view_functions
from limbeck.data.data import Batch
from limbeck.data.random import derive, uniforms
from limbeck.data.samples import Samples
from limbeck.data.store import LabelStore
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError


class CropStream(Stream):
    """A shuffled stream in which every image brings several of its labelled views at once (arXiv 2112.01528).

    A batch holds ``batch_size / crops`` images, each read once, with ``crops`` different views drawn for this visit
    from the stored ones: neighbours in the batch. A view counts as a sample, so that an epoch has as many updates as
    one of ordinary training, and runs over a part of the images.

    Args:
        samples: N images with stored labels.
        store: of their labels, in rows by view.
        batch_size: views a batch.
        seed: of the run: order, and which views are drawn.
        crops: views of an image.
        chosen: bool [N, views], which views may be drawn of the image at each position; every image needs one. Images
            with fewer than ``crops`` bring some twice.
        name: of the stream.

    Raises:
        LimbeckError: numbers that do not divide, more views than there are, or an image without a view.
    """

    def __init__(
        self,
        samples: Samples,
        store: LabelStore,
        batch_size: int,
        seed: int,
        crops: int,
        chosen: Tensor | None = None,
        name: str = "train",
    ) -> None:
        schema = store.schema
        super().__init__(samples, batch_size, seed, views={"image": schema.view}, name=name, flip=schema.flip)
        if crops < 1 or batch_size % crops:
            raise LimbeckError(f"a batch of {batch_size} cannot hold {crops} views of each image; use a multiple of it")
        if crops > schema.views:
            raise LimbeckError(f"crops is {crops}, and {schema.views} views of each image have labels")
        if chosen is not None and not chosen.any(1).all():
            raise LimbeckError(f"the image at position {int((~chosen.any(1)).nonzero()[0])} has no view to be drawn")
        self.store, self.crops, self.chosen = store, crops, chosen

    def batch(self, number: int, *, rank: int = 0, world: int = 1) -> Batch:
        """As :meth:`Stream.batch`, with ``crops`` neighbours of each image; ``epoch`` is the number of the view."""
        positions, visits = self.places(number, self.batch_size // self.crops)
        positions, visits = positions[rank::world], visits[rank::world]
        found = self.samples.fetch(positions)
        numbers = self._draw(positions, visits, found["index"])
        batch = {key: value.repeat_interleave(self.crops, 0) for key, value in found.items()}
        batch["epoch"] = numbers
        schema = self.store.schema
        batch["image"] = view_functions.apply(
            schema.view, batch["image"], seed=schema.seed, epochs=numbers, indices=batch["index"], flip=schema.flip
        )
        return batch

    def batches(self, start: int, stop: int, *, rank: int = 0, world: int = 1, workers: int = 0) -> Iterator[Batch]:
        """As :meth:`Stream.batches`; images are divided among the processes.

        Raises:
            LimbeckError: the images of a batch cannot be divided among the processes, or one cannot be read.
        """
        if (self.batch_size // self.crops) % world:
            raise LimbeckError(
                f"the {self.batch_size // self.crops} images of a batch cannot be divided among {world} processes"
            )
        return super().batches(start, stop, rank=rank, world=world, workers=workers)

    def _draw(self, positions: Tensor, visits: Tensor, indices: Tensor) -> Tensor:
        """Numbers of the views, int64 [images * crops], different within an image as far as it has so many."""
        key = derive(self.seed, "crops", self.name)
        keys = uniforms(key, visits.numpy(), indices.numpy(), draws=self.store.schema.views)
        counts = np.full(len(keys), self.store.schema.views)
        if self.chosen is not None:
            allowed = self.chosen[positions].numpy()
            keys, counts = np.where(allowed, keys, 2.0), allowed.sum(1)
        order = keys.argsort(1)
        columns = np.arange(self.crops) % counts[:, None]
        return torch.from_numpy(np.take_along_axis(order, columns, 1).reshape(-1))
