"""A continual test stream: the test images of a data set in one domain after the other, unlabelled to the model."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from limbeck.data.corruptions import CORRUPTIONS, SEVERITIES, check, corrupt
from limbeck.data.data import Batch
from limbeck.data.load import load_images
from limbeck.data.places import existing
from limbeck.data.random import derive, permutation
from limbeck.data.samples import ImageData, Samples
from limbeck.data.splits import hold_out
from limbeck.errors import LimbeckError


class Images(Protocol):
    """The images of a stream in one of its domains."""

    def __call__(self, domain: str, samples: Samples, positions: Tensor, severity: int) -> Tensor:
        """Float [B, C, H, W] in [0, 1]: the samples at ``positions``, int64 [B], as that domain shows them."""


class Place(NamedTuple):
    """Where in a stream a batch lies.

    Attributes:
        round: which pass over all domains, from 0.
        domain: which entry of the order, from 0.
        part: which batch of the domain, from 0.
    """

    round: int
    domain: int
    part: int


class CorruptedStream:
    """Batches of test images under a sequence of domains; batch ``b`` depends on the seed and ``b`` only.

    The domains follow one another without notice, all of them ``rounds`` times. In every domain each image comes
    once, in an order of its own; the batches of a domain have equal sizes, or sizes that differ by one.

    Args:
        samples: the images and their labels, which are for metrics only.
        images: the images of a domain.
        order: the domains of a round.
        severity: of every corruption.
        rounds: how often the order is repeated.
        batch_size: largest number of images a batch.
        seed: of the order of the images.
    """

    def __init__(
        self,
        samples: Samples,
        images: Images,
        order: Sequence[str],
        severity: int,
        rounds: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.samples, self.images, self.order = samples, images, tuple(order)
        self.severity, self.rounds, self.batch_size, self.seed = severity, rounds, batch_size, seed
        self.parts = -(-len(samples) // batch_size)

    def __len__(self) -> int:
        return self.rounds * len(self.order) * self.parts

    def place(self, number: int) -> Place:
        """Where batch ``number`` lies."""
        visit, part = divmod(number, self.parts)
        return Place(*divmod(visit, len(self.order)), part)

    def positions(self, number: int) -> Tensor:
        """Which of the samples make batch ``number``, int64 [B]."""
        at = self.place(number)
        return self._parts(at.round, at.domain)[at.part]

    def batch(self, number: int) -> Batch:
        """Batch ``number``, from 0: ``image`` float [B, C, H, W] in [0, 1], ``label`` and ``index`` int64 [B]."""
        positions = self.positions(number)
        domain = self.order[self.place(number).domain]
        return {
            "image": self.images(domain, self.samples, positions, self.severity),
            "label": self.samples.labels[positions],
            "index": self.samples.indices[positions],
        }

    def clean(self) -> Iterator[Batch]:
        """The images once without corruption, in mixed order as everywhere: statistics of a batch need many classes."""
        for positions in self._parts(-1, -1):
            yield self.samples.fetch(positions)

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add all that decides the batches to a hash."""
        self.samples.update_hash(digest)
        settings = (self.order, self.severity, self.rounds, self.batch_size, self.seed, self.images)
        digest.update(repr(settings).encode())

    def _parts(self, around: int, domain: int) -> Sequence[Tensor]:
        order = permutation(derive(self.seed, "stream", around, domain), len(self.samples))
        return torch.from_numpy(order).tensor_split(self.parts)


@dataclass(frozen=True)
class Synthetic:
    """Domains made by :func:`limbeck.data.corruptions.corrupt`, with that seed."""

    seed: int

    def __call__(self, domain: str, samples: Samples, positions: Tensor, severity: int) -> Tensor:
        """See :class:`Images`."""
        batch = samples.fetch(positions)
        return corrupt(domain, batch["image"], severity, seed=self.seed, indices=batch["index"])


class Stored:
    """Domains that lie on disk in the layout of CIFAR-10-C: ``DOMAIN.npy``, uint8 [5 N, H, W, 3], mildest first.

    Args:
        folder: holds the files.
        order: the domains that must be there.
        samples: the N clean test images, in the order in which the files have them.

    Raises:
        LimbeckError: a file is missing or of another shape.
    """

    def __init__(self, folder: str | Path, order: Sequence[str], samples: Samples) -> None:
        self.folder = existing(folder)
        self.files: dict[str, Any] = {}
        self.count = len(samples.images)
        channels, height, width = samples.shape
        wanted = (len(SEVERITIES) * self.count, height, width, channels)
        for domain in order:
            file = np.load(existing(self.folder / f"{domain}.npy"), mmap_mode="r")
            if file.shape != wanted or file.dtype != np.uint8:
                raise LimbeckError(
                    f"{self.folder / domain}.npy holds {file.dtype} {list(file.shape)}, expected uint8 {list(wanted)}: "
                    f"the {self.count} test images at {len(SEVERITIES)} severities"
                )
            self.files[domain] = file

    def __call__(self, domain: str, samples: Samples, positions: Tensor, severity: int) -> Tensor:
        """See :class:`Images`."""
        rows = (severity - 1) * self.count + samples.rows[positions]
        return torch.from_numpy(self.files[domain][rows.numpy()]).permute(0, 3, 1, 2).float() / 255

    def __repr__(self) -> str:
        return f"Stored({self.folder.name}, {self.count})"


@dataclass(frozen=True, kw_only=True)
class CorruptedData(ImageData):
    """Clean images for a source model, and the streams it must then live with.

    Attributes:
        stream: of the test images.
        validation_stream: of the validation images, for tuning; None where their corruptions cannot be made.
    """

    stream: CorruptedStream
    validation_stream: CorruptedStream | None


def corruptions(
    seed: int,
    dataset: str | dict[str, Any] = "digits",
    order: list[str] | None = None,
    severity: int = 5,
    rounds: int = 1,
    batch_size: int = 200,
    test_size: int | None = None,
    folder: str | None = None,
) -> CorruptedData:
    """A data set of images, and its test images again in one corrupted domain after the other.

    The source model is trained on the data set as it is. The stream is that of the continual benchmarks
    (arXiv 2203.13591, section 4): no notice of a change of domain, no reset, every batch seen once.

    Args:
        seed: decides splits, the order of the images and what is random about a corruption.
        dataset: the data set, as a data block: the name of a source, or a mapping of name and options.
        order: the domains of a round; all those of :mod:`limbeck.data.corruptions` where not given.
        severity: from 1 (mild) to 5.
        rounds: how often the order is repeated.
        batch_size: largest number of images a batch.
        test_size: test images in the stream, each class in proportion; all of them where not given.
        folder: corrupted test images that are ready, in the layout of CIFAR-10-C, instead of made here.

    Raises:
        LimbeckError: the data set cannot be opened or holds no images with classes, or an option out of range.
    """
    for name, value, least in (("rounds", rounds, 1), ("batch_size", batch_size, 2), ("test_size", test_size, 1)):
        if value is not None and value < least:
            raise LimbeckError(f"corruptions: {name} is {value}; it must be at least {least}")
    domains = list(CORRUPTIONS) if order is None else list(order)
    if not domains:
        raise LimbeckError("corruptions: order is empty; name at least one domain")
    for domain in domains:
        check(domain if folder is None else next(iter(CORRUPTIONS)), severity)
    data = load_images(dataset, seed, "corruptions")
    test = data.test
    if test_size is not None and test_size < len(test):
        test = hold_out(test, test_size / len(test))[1]
    made = Synthetic(derive(seed, "corruptions"))
    images: Images = made if folder is None else Stored(folder, domains, data.test)

    def stream(samples: Samples, name: str) -> CorruptedStream:
        return CorruptedStream(samples, images, domains, severity, rounds, batch_size, derive(seed, name))

    return CorruptedData(
        train=data.train,
        validation=data.validation,
        test=data.test,
        unlabeled=data.unlabeled,
        classes=data.classes,
        view=data.view,
        flip=data.flip,
        stream=stream(test, "test"),
        validation_stream=stream(data.validation, "validation") if folder is None else None,
    )
