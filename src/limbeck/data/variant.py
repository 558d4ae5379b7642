"""A data set like another one: some of its classes, its images turned."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.data.load import open_source
from limbeck.data.pixels import Images
from limbeck.data.samples import Samples, Source
from limbeck.errors import LimbeckError, nearest


def variant(dataset: str | dict[str, Any] = "digits", classes: list[str] | None = None, turns: int = 0) -> Source:
    """Some classes of a data set of images, upside down where ``turns`` is 2.

    Args:
        dataset: the data set, as a data block without splits: the name of a source, or a mapping of name and options.
        classes: names of the classes that are kept, in the order of the new labels; null keeps all.
        turns: quarter turns of every image, counter-clockwise.

    Raises:
        LimbeckError: the data set cannot be opened or makes its own splits, or has no such class.
    """
    return choose_classes(open_source(dataset, "variant"), classes, turns, "variant")


def choose_classes(source: Source, classes: Sequence[str] | None, turns: int, where: str) -> Source:
    """Some classes of a data set, upside down where ``turns`` is 2.

    Args:
        source: the data set.
        classes: names of the classes that are kept, in the order of the new labels; None keeps all.
        turns: quarter turns of every image, counter-clockwise.
        where: which source asks, for messages.

    Raises:
        LimbeckError: there is no such class, it is named twice, or a part of the data set has none of them.
    """
    chosen = list(source.classes) if classes is None else list(classes)
    for name in chosen:
        if name not in source.classes or chosen.count(name) > 1:
            known = ", ".join(source.classes)
            fault = "is named twice" if name in source.classes else f"is none of {known}."
            raise LimbeckError(f"{where}: class {name!r} {fault}{nearest(name, source.classes)}")
    train, test, validation = (
        None if part is None else _part(part, chosen, turns, where)
        for part in (source.train, source.test, source.validation)
    )
    assert train is not None
    assert test is not None
    return Source(train, test, validation, source.flip)


class Turned:
    """Images turned by multiples of 90 degrees.

    Args:
        images: the images as they are.
        turns: how often, counter-clockwise.
    """

    def __init__(self, images: Images, turns: int) -> None:
        self.images, self.turns, self.in_memory = images, turns, images.in_memory
        channels, height, width = images.shape
        self.shape = (channels, width, height) if turns % 2 else images.shape

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Tensor) -> Tensor:
        """See :class:`limbeck.data.pixels.Images`."""
        return self.images.take(rows).rot90(self.turns, (-2, -1)).contiguous()


def _part(samples: Samples, classes: list[str], turns: int, where: str) -> Samples:
    numbers = torch.full((len(samples.classes),), -1)
    for number, name in enumerate(classes):
        numbers[samples.classes.index(name)] = number
    labels = numbers[samples.labels]
    kept = torch.nonzero(labels >= 0)[:, 0]
    if not len(kept):
        raise LimbeckError(f"{where}: a part of the data set has no sample of {', '.join(classes)}")
    images = Turned(samples.images, turns) if turns % 4 else samples.images
    changed = {"images": images, "labels": labels[kept], "classes": classes, "hidden_labels": None}
    return Samples(**samples.subset(kept).arguments | changed)
