"""Labelled images by position, and the three or four sets of them that a run needs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from limbeck.data import views as view_functions
from limbeck.data.data import Batch, Records, ViewedData
from limbeck.data.pixels import Images, Joined, Memory
from limbeck.data.statistics import channel_statistics
from limbeck.errors import LimbeckError

if TYPE_CHECKING:
    from limbeck.models.classifier import ImageTask


HASHED = 256
"""Images of each split that go into its hash; labels and positions are hashed in full."""


class Replay(NamedTuple):
    """Which views of the images a training sees again and again, in the place of ever new ones.

    Attributes:
        seed: of the views, in the place of the run's.
        views: in epoch e every sample comes in its view ``e % views``.
    """

    seed: int
    views: int


class Samples(Records):
    """Images with labels, map-style, every sample with its stable ``index``.

    ``samples[i]`` is ``{"image": float32 [C, H, W] in [0, 1], "label": int, "index": int}`` plus
    ``"hidden_label"`` where it is known; :meth:`fetch` gives many of them at once. Subsets share the images
    of the whole.

    Args:
        images: uint8 or float [N, C, H, W], or another set of images.
        labels: int64 [N], -1 for a sample without a label.
        classes: the names of the classes.
        rows: int64 [N], where in ``images`` each sample lies; all of them in order where not given.
        indices: int64 [N], the sample's stable position in the source data set; as ``rows`` where not given.
        num_samples: the size of the source, which is the number of rows a per-sample table needs.
        hidden_labels: int64 [N], the truth behind missing or noisy labels: for metrics, never for training.
        replay: the views that were labelled and stored, where only these shall be seen.

    Raises:
        LimbeckError: no samples, lengths that differ, or a label outside the classes (naming the index).
    """

    def __init__(
        self,
        images: Tensor | Images,
        labels: Tensor,
        classes: Sequence[str],
        *,
        rows: Tensor | None = None,
        indices: Tensor | None = None,
        num_samples: int | None = None,
        hidden_labels: Tensor | None = None,
        replay: Replay | None = None,
    ) -> None:
        self.images: Images = Memory(images) if isinstance(images, Tensor) else images
        self.labels = labels.to(torch.int64)
        self.classes = tuple(classes)
        self.rows = torch.arange(len(self.images)) if rows is None else rows
        self.indices = self.rows if indices is None else indices
        self.num_samples = len(self.images) if num_samples is None else num_samples
        self.hidden_labels = hidden_labels
        self.replay = replay
        if len(self.labels) != len(self.rows):
            raise LimbeckError(f"{len(self.rows)} images but {len(self.labels)} labels: give one label an image")
        if len(self.labels) == 0:
            raise LimbeckError("there are no samples")
        check_labels(self.labels, self.classes, "the data set", self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        if not -len(self) <= position < len(self):
            raise IndexError(f"sample {position} of {len(self)}")
        batch = self.fetch(torch.tensor([position % len(self)]))
        return {name: value[0] if name == "image" else int(value[0]) for name, value in batch.items()}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.images.shape

    def fetch(self, positions: Tensor) -> Batch:
        """The samples at ``positions``, int64 [B], as one batch.

        Returns:
            ``image`` float32 [B, C, H, W] in [0, 1], ``label`` and ``index`` int64 [B], and ``hidden_label``
            int64 [B] where it is known; all fresh memory.
        """
        batch = {
            "image": self.images.take(self.rows.index_select(0, positions)),
            "label": self.labels.index_select(0, positions),
            "index": self.indices.index_select(0, positions),
        }
        if self.hidden_labels is not None:
            batch["hidden_label"] = self.hidden_labels.index_select(0, positions)
        return batch

    def augment(self, batch: Batch, views: Mapping[str, str], *, seed: int, epochs: Tensor, flip: bool) -> Batch:
        """The batch with one image tensor a view in the place of ``image``, see :mod:`limbeck.data.views`."""
        if not views:
            return batch
        if self.replay is not None:
            seed, epochs = self.replay.seed, epochs % self.replay.views
        found = dict(batch)
        image = found.pop("image")
        made = {
            key: view_functions.apply(view, image, seed=seed, epochs=epochs, indices=found["index"], flip=flip)
            for key, view in views.items()
        }
        return {**made, **found}

    def check_view(self, view: str) -> None:
        """Refuse an unknown view.

        Raises:
            LimbeckError: there is no such view.
        """
        view_functions.check(view)

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add labels, indices and evenly spaced images."""
        digest.update(f"{len(self)} {self.shape} {self.num_samples}{self.replay or ''}".encode())
        for values in (self.labels, self.indices):
            digest.update(values.numpy().tobytes())
        positions = torch.linspace(0, len(self) - 1, min(HASHED, len(self))).long()
        digest.update(self.images.take(self.rows[positions]).numpy().tobytes())

    def subset(self, positions: Tensor | Sequence[int]) -> "Samples":
        """The samples at ``positions``, with their indices.

        Raises:
            LimbeckError: there are none.
        """
        at = torch.as_tensor(positions, dtype=torch.int64)
        return self._with(
            labels=self.labels[at],
            rows=self.rows[at],
            indices=self.indices[at],
            hidden_labels=None if self.hidden_labels is None else self.hidden_labels[at],
        )

    def relabel(self, labels: Tensor) -> "Samples":
        """The same images with other ``labels``, int64 [N]; the truth, as far as known, is hidden."""
        hidden = self.labels if self.hidden_labels is None else self.hidden_labels
        return self._with(labels=labels, hidden_labels=hidden)

    def unlabel(self) -> "Samples":
        """The same images without labels (-1); the labels travel as ``hidden_labels``."""
        return self.relabel(torch.full_like(self.labels, -1))

    def replayed(self, replay: Replay) -> "Samples":
        """The same samples, in views that are made again.

        Raises:
            LimbeckError: they come in other views that were labelled already.
        """
        if self.replay not in (None, replay):
            raise LimbeckError(
                f"stores of labels that teach together hold the same views, and these have {self.replay} and {replay}: "
                "label with the same seed and views"
            )
        return self._with(replay=replay)

    @property
    def in_memory(self) -> bool:
        """Whether reading an image costs no decoding."""
        return self.images.in_memory

    @property
    def arguments(self) -> dict[str, Any]:
        """What they are made of, as the constructor takes it."""
        names = ("images", "labels", "classes", "rows", "indices", "num_samples", "hidden_labels", "replay")
        return {name: getattr(self, name) for name in names}

    def _with(self, **changes: Any) -> "Samples":
        return Samples(**self.arguments | changes)


def concat(parts: Sequence[Samples]) -> Samples:
    """Several sets of samples, one after the other.

    Parts of one source keep their indices. Parts of different sources make a new one, in which the indices of
    each part follow those of the part before.

    Raises:
        LimbeckError: the classes or the shapes of the images differ.
    """
    first = parts[0]
    for part in parts:
        if part.classes != first.classes:
            raise LimbeckError(f"cannot join samples of classes {list(first.classes)} and {list(part.classes)}")
        if part.replay != first.replay:
            raise LimbeckError(
                "cannot join samples whose stored views have labels with samples without: label them all"
            )
    images: Images = first.images
    rows, indices = [part.rows for part in parts], [part.indices for part in parts]
    num_samples = first.num_samples
    if any(part.images is not first.images for part in parts):
        images = Joined([part.images for part in parts])
        starts = [sum(len(part.images) for part in parts[:number]) for number in range(len(parts))]
        rows = [part.rows + start for part, start in zip(parts, starts, strict=True)]
        firsts = [sum(part.num_samples for part in parts[:number]) for number in range(len(parts))]
        indices = [part.indices + start for part, start in zip(parts, firsts, strict=True)]
        num_samples = sum(part.num_samples for part in parts)
    hidden = None
    if any(part.hidden_labels is not None for part in parts):
        hidden = torch.cat([part.labels if part.hidden_labels is None else part.hidden_labels for part in parts])
    return Samples(
        images,
        torch.cat([part.labels for part in parts]),
        first.classes,
        rows=torch.cat(rows),
        indices=torch.cat(indices),
        num_samples=num_samples,
        hidden_labels=hidden,
        replay=first.replay,
    )


def check_labels(labels: Tensor, classes: Sequence[str], where: str, indices: Tensor | None = None) -> None:
    """Refuse labels that name no class; -1 is a missing label.

    Raises:
        LimbeckError: naming the first wrong label and its index.
    """
    wrong = torch.nonzero((labels < -1) | (labels >= len(classes)))[:, 0]
    if len(wrong):
        at = int(wrong[0])
        index = at if indices is None else int(indices[at])
        raise LimbeckError(
            f"{where}: label {int(labels[at])} at index {index} is out of range, "
            f"expected 0 to {len(classes) - 1} ({len(classes)} classes)"
        )


@dataclass(frozen=True)
class Source:
    """A data set as it comes, before it is split for a run.

    Attributes:
        train: the training samples.
        test: the test samples.
        validation: the validation samples, where the data set has its own.
        flip: whether a mirrored image is still an image of its class.
    """

    train: Samples
    test: Samples
    validation: Samples | None = None
    flip: bool = True

    def __post_init__(self) -> None:
        for name, part in (("training", self.train), ("test", self.test), ("validation", self.validation)):
            if part is None:
                continue
            if (part.labels < 0).any():
                index = int(part.indices[torch.nonzero(part.labels < 0)[0, 0]])
                raise LimbeckError(f"the {name} data has no label at index {index} (-1); leave out what has none")
            if part.classes != self.train.classes:
                raise LimbeckError(
                    f"the {name} data has classes {list(part.classes)}, the training data {list(self.train.classes)}"
                )
            if part.shape != self.train.shape:
                raise LimbeckError(
                    f"the {name} images are {list(part.shape)}, the training images {list(self.train.shape)} "
                    "(channels, height, width)"
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.train.classes


@dataclass(frozen=True)
class ImageData(ViewedData):
    """The images with labels of one run."""

    train: Samples
    validation: Samples
    test: Samples
    unlabeled: Samples | None

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Labelled training samples of each class."""
        labels = self.train.labels
        return tuple(torch.bincount(labels[labels >= 0], minlength=len(self.classes)).tolist())

    @cached_property
    def task(self) -> "ImageTask":
        """What a model needs to know; mean and standard deviation of all training images, labelled or not."""
        from limbeck.models.classifier import ImageTask

        channels, *size = self.train.shape
        parts = [self.train] + ([] if self.unlabeled is None else [self.unlabeled])
        mean, std = channel_statistics((part.images, part.rows) for part in parts)
        return ImageTask(self.classes, channels, (size[0], size[1]), mean, std)
