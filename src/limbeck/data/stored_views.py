"""Samples in exactly the views that were labelled, with their labels from disk."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.data import views as view_functions
from limbeck.data.data import Batch
from limbeck.data.samples import Samples
from limbeck.data.store import LabelStore, Mix, Rows
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.mix_rows import blend, paste_boxes


class StoredViews(Samples):
    """Images that come as they were labelled: in the stored view, mixed as stored, with ``logits`` [B, C].

    Fast knowledge distillation (arXiv 2112.01528), in the rows of :mod:`limbeck.data.store`.

    Args:
        samples: the images that were labelled.
        store: their labels.

    Raises:
        LimbeckError: the labels are of other images or of other classes.
    """

    def __init__(self, samples: Samples, store: LabelStore) -> None:
        super().__init__(**samples.arguments)
        store.check(samples)
        self.store = store
        self.position = torch.full((self.num_samples,), -1).index_copy_(0, self.indices, torch.arange(len(self)))

    def stream(self, batch_size: int) -> Stream:
        """The samples in the order in which they were labelled."""
        schema = self.store.schema
        return Stream(self, batch_size, schema.seed, views={"image": schema.view}, name=schema.stream, flip=schema.flip)

    def augment(self, batch: Batch, views: Mapping[str, str], *, seed: int, epochs: Tensor, flip: bool) -> Batch:
        """The batch with ``image`` as it was labelled and ``logits`` float32 [B, C].

        Raises:
            LimbeckError: another view or seed than the stored ones, or more epochs than were labelled.
        """
        schema = self.store.schema
        asked = (dict(views), seed, flip)
        if asked != ({"image": schema.view}, schema.seed, schema.flip):
            raise LimbeckError(
                f"labels are stored for the view {schema.view!r} of seed {schema.seed} with flip={schema.flip}, "
                f"not for {asked}: read them by StoredViews.stream"
            )
        rows = self.store.rows(batch["index"], epochs)
        missing = ~self.store.has(rows)
        if missing.any():
            at = int(missing.nonzero()[0])
            raise LimbeckError(
                f"sample {int(batch['index'][at])} has no stored label in epoch {int(epochs[at])}: labels reach as far "
                "as the training that they were made for; label more, or train less"
            )
        labels = self.store.read(rows)
        every, at = torch.cat([rows, labels.partner]).unique(return_inverse=True)
        images = self._views(every)  # of one batch a partner mostly is in it
        own, partners = at.chunk(2)
        return {**batch, "image": mix(schema.mix, images[own], images[partners], labels), "logits": labels.logits}

    def _views(self, rows: Tensor) -> Tensor:
        """The unmixed views of rows of the store, [B, C, H, W] in [0, 1]."""
        schema = self.store.schema
        batch = self.fetch(self.position[self.store.index_of(rows)])
        epochs = rows // schema.samples
        return view_functions.apply(
            schema.view, batch["image"], seed=schema.seed, epochs=epochs, indices=batch["index"], flip=schema.flip
        )

    def check_view(self, view: str) -> None:
        """Refuse a view other than the stored one.

        Raises:
            LimbeckError: naming it.
        """
        if view != self.store.schema.view:
            raise LimbeckError(f"labels are stored for the view {self.store.schema.view!r}, not for {view!r}")

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add images and what the labels were made from."""
        super().update_hash(digest)
        digest.update(f"{self.store.schema!r} {self.store.version}".encode())


def mix(kind: Mix, images: Tensor, partners: Tensor, rows: Rows) -> Tensor:
    """Images [B, C, H, W] mixed with their partners as rows of a store say."""
    if kind == "mixup":
        return blend(images, partners, rows.share)
    return paste_boxes(images, partners, rows.box) if kind == "cutmix" else images
