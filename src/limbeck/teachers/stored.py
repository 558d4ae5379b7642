"""Stored labels in the place of a teacher."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
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
        stores: the labels, unmixed. Of several, which have to be of the same views of the same samples, the answer is
            the log of the mean probability.

    Attributes:
        store: the first of them: samples, views and order are its own.

    Raises:
        LimbeckError: labels of mixed samples, or not one for every view; stores of different views or samples.
    """

    task: ClassVar[str] = "classification"

    def __init__(self, *stores: LabelStore) -> None:
        super().__init__(None)
        for store in stores:
            if store.schema.mix != "none" or not store.schema.ordered:
                raise LimbeckError(
                    f"{store.name} holds labels of the batches of one training, mixed as there; make one with limbeck "
                    "label"
                )
            store.check_like(stores[0])
        self.stores, self.store = stores, stores[0]
        self.classes = self.store.schema.classes
        self.version = [store.version for store in stores]  # a fit on other labels is another fit

    def forward(self, batch: Mapping[str, Tensor]) -> ClassifierOutput:
        """Logits [B, C] of the samples of a batch, each in the view of its epoch.

        Raises:
            LimbeckError: a batch that is not of the training.
        """
        if "epoch" not in batch:
            raise LimbeckError(f"{self.store.name} knows the samples and views it was made from, no other images")
        index, epoch = batch["index"].cpu(), batch["epoch"].cpu()
        rows = self.store.rows(index, epoch % self.store.schema.views)
        return ClassifierOutput(self.read(rows).to(batch["index"].device), None)

    def read(self, rows: Tensor) -> Tensor:
        """Logits [B, C] of some rows of the stores, int64 [B]."""
        found = [store.read(rows).logits for store in self.stores]
        if len(found) == 1:
            return found[0]
        return torch.stack([logits.log_softmax(-1) for logits in found]).logsumexp(0) - math.log(len(found))

    def replay(self, data: Data) -> ImageData:
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


def store(task: Any, *, folder: str | list[str], tail: Tail = "smooth") -> Stored:
    """A store of labels as the teacher of a recipe: ``teacher: {name: store, folder: STORE}``.

    Args:
        task: what the data are; its classes are matched by name.
        folder: what ``limbeck label`` wrote; of several folders (an ensemble that labelled the same views) the mean.
        tail: what becomes of the probability outside the top k: spread over the other classes, or renormalize.

    Raises:
        LimbeckError: no such store, an unfinished one, or files that were changed; stores that do not belong together.
    """
    folders: Sequence[str] = [folder] if isinstance(folder, str) else folder
    if not folders:
        raise LimbeckError("folder names no store; give at least one that limbeck label wrote")
    return Stored(*(LabelStore.open(Path(name), tail=tail) for name in folders))


def replay(teachers: Sequence[torch.nn.Module], data: ImageData) -> ImageData:
    """Data in the views that the stored ones among the teachers know, which have to be the same.

    Raises:
        LimbeckError: as of :meth:`Stored.replay`.
    """
    for teacher in teachers:
        if isinstance(teacher, Stored):
            data = teacher.replay(data)
    return data


def is_stored(teacher: torch.nn.Module) -> bool:
    """Whether a teacher only knows the training samples, so that it cannot be measured on others."""
    return any(isinstance(part, Stored) for part in teacher.modules())
