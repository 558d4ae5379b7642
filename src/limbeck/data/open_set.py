"""A data set with unlabelled images from somewhere else, which need not be of its classes."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.data.load import load_images
from limbeck.data.pixels import Images
from limbeck.data.random import derive, permutation
from limbeck.data.samples import ImageData, Samples, concat
from limbeck.errors import LimbeckError


def open_set(
    seed: int, dataset: str | dict[str, Any] = "digits", pool: str | dict[str, Any] = "digits", size: int | None = None
) -> ImageData:
    """The training images of another data set, without their labels, among the unlabelled images of a data set.

    Where both name a class alike its images hide that class; all others belong to no class, and hide -1. Images of
    another shape are resized (bilinear) and made grey or RGB, as those of the data set are.

    Args:
        seed: decides the splits, and which images are taken.
        dataset: the data set, as a data block: the name of a source, or a mapping of name and options.
        pool: the other one.
        size: how many images of the pool are taken; all of its training images where not given.

    Raises:
        LimbeckError: one of them cannot be opened or holds no images with classes, or the pool has fewer than ``size``.
    """
    data = load_images(dataset, seed, "open_set")
    other = load_images(pool, seed, "open_set: pool").train
    count = len(other) if size is None else size
    if not 1 <= count <= len(other):
        raise LimbeckError(f"open_set: size is {size}; the pool has {len(other)} training images, take from 1 to all")
    chosen = permutation(derive(seed, "open_set"), len(other))[:count]
    strangers = other.subset(torch.from_numpy(chosen).sort().values)
    classes = torch.tensor([data.classes.index(name) if name in data.classes else -1 for name in strangers.classes])
    shape = data.train.shape
    changed = {
        "images": strangers.images if strangers.shape == shape else Resized(strangers.images, shape),
        "labels": torch.full_like(strangers.labels, -1),
        "classes": data.classes,
        "hidden_labels": classes[strangers.labels],
    }
    unlabeled = Samples(**strangers.arguments | changed)
    parts = [unlabeled] if data.unlabeled is None else [data.unlabeled, unlabeled]
    return dataclasses.replace(data, unlabeled=concat(parts))


class Resized:
    """Images in another shape.

    Args:
        images: the images as they are.
        shape: channels (1 or 3), height and width of what comes out.
    """

    def __init__(self, images: Images, shape: tuple[int, int, int]) -> None:
        self.images, self.shape, self.in_memory = images, shape, images.in_memory

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Tensor) -> Tensor:
        """See :class:`limbeck.data.pixels.Images`."""
        images = self.images.take(rows)
        channels, *size = self.shape
        images = images.mean(1, keepdim=True) if channels == 1 else images.expand(-1, 3, -1, -1)
        if list(images.shape[2:]) == size:
            return images.clone()
        return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True).clamp_(0, 1)
