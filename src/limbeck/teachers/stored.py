"""Stored labels in the place of a teacher."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.data.codec import Tail
from limbeck.data.data import Data
from limbeck.data.samples import ImageData, Replay
from limbeck.data.store import LabelStore
from limbeck.errors import LimbeckError
from limbeck.models.classifier import ClassifierOutput
from limbeck.models.model import Model


class Stored(Model):
    """Answers with what a teacher said of the same view of the same sample: no teacher runs (arXiv 2112.01528).

    A training with it sees the labelled views, again and again where it is longer than they reach: see
    :meth:`replay`. It serves whoever asks a teacher for logits of the training samples in their training view, and
    nobody else.

    Args:
        store: the labels, unmixed.

    Raises:
        LimbeckError: labels of mixed samples, or not one for every view.
    """

    task: ClassVar[str] = "classification"

    def __init__(self, store: LabelStore) -> None:
        super().__init__(None)
        if store.schema.mix != "none" or not store.schema.ordered:
            raise LimbeckError(
                f"{store.name} holds labels of the batches of one training, mixed as there; make one with limbeck label"
            )
        self.store = store
        self.classes = store.schema.classes
        self.version = store.version  # what it is made of: a fit on other labels is another fit

    def forward(self, batch: Mapping[str, Tensor]) -> ClassifierOutput:
        """Logits [B, C] of the samples of a batch, each in the view of its epoch.

        Raises:
            LimbeckError: a batch that is not of the training.
        """
        if "epoch" not in batch:
            raise LimbeckError(f"{self.store.name} knows the samples and views it was made from, no other images")
        index, epoch = batch["index"].cpu(), batch["epoch"].cpu()
        rows = self.store.rows(index, epoch % self.store.schema.views)
        return ClassifierOutput(self.store.read(rows).logits.to(batch["index"].device), None)

    def replay(self, data: Data) -> Data:
        """Data whose training samples come in the views that were labelled; unlabelled ones too, if they were.

        Raises:
            LimbeckError: data that were not labelled, or in another view.
        """
        schema = self.store.schema
        if not isinstance(data, ImageData):
            raise LimbeckError(f"{self.store.name} holds labels of images, and data holds {type(data).__name__}")
        if (data.view, data.flip) != (schema.view, schema.flip):
            raise LimbeckError(
                f"{self.store.name} holds labels of the view {schema.view!r} with flip={schema.flip}, and data.view is "
                f"{data.view!r} with flip={data.flip}: train on data.view={schema.view}, or label again"
            )
        parts = {"train": data.train}
        if data.unlabeled is not None and self.store.knows(data.unlabeled).any():
            parts["unlabeled"] = data.unlabeled
        for samples in parts.values():
            self.store.check(samples)
        again = Replay(schema.seed, schema.views)
        replayed: dict[str, Any] = {name: samples.replayed(again) for name, samples in parts.items()}
        return dataclasses.replace(data, **replayed)


def store(task: Any, *, folder: str, tail: Tail = "smooth") -> Stored:
    """A store of labels as the teacher of a recipe: ``teacher: {name: store, folder: STORE}``.

    Args:
        task: what the data are; its classes are matched by name.
        folder: what ``limbeck label`` wrote.
        tail: what becomes of the probability outside the top k: spread over the other classes, or renormalize.

    Raises:
        LimbeckError: no such store, an unfinished one, or files that were changed.
    """
    return Stored(LabelStore.open(Path(folder), tail=tail))


def is_stored(teacher: torch.nn.Module) -> bool:
    """Whether a teacher only knows the training samples, so that it cannot be measured on others."""
    return any(isinstance(part, Stored) for part in teacher.modules())
