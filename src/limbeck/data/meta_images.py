"""Images with meta-information: when and where they were taken."""

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.data import Batch
from limbeck.data.load import open_source
from limbeck.data.meta_encoding import encode_place, encode_time
from limbeck.data.random import derive, uniforms
from limbeck.data.samples import Samples, Source
from limbeck.errors import LimbeckError


class MetaSamples(Samples):
    """Images with labels and meta-information, ``meta`` float32 [B, M] of a batch; rows of zeros where there is none.

    Args:
        meta: float [rows of the images, M].
        images: as of :class:`Samples`.
        labels: as of :class:`Samples`.
        classes: as of :class:`Samples`.
        others: the other arguments of :class:`Samples`.

    Raises:
        LimbeckError: not one row an image, or numbers that are not finite; or as of :class:`Samples`.
    """

    def __init__(self, meta: Tensor, images: Any, labels: Tensor, classes: Any, **others: Any) -> None:
        super().__init__(images, labels, classes, **others)
        if meta.ndim != 2 or len(meta) != len(self.images) or not meta.isfinite().all():
            raise LimbeckError(
                f"meta-information is {list(meta.shape)} for {len(self.images)} images: give one row of finite numbers "
                "an image, zeros where nothing is known"
            )
        self.meta = meta.float()

    def fetch(self, positions: Tensor) -> Batch:
        """The samples at ``positions``, as of :class:`Samples`, with their ``meta``."""
        return {**super().fetch(positions), "meta": self.meta[self.rows.index_select(0, positions)]}

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add the meta-information too."""
        super().update_hash(digest)
        digest.update(self.meta[self.rows].numpy().tobytes())

    def _with(self, **changes: Any) -> "MetaSamples":
        return MetaSamples(self.meta, **self.arguments | changes)


def meta_images(
    dataset: str | dict[str, Any] = "digits",
    seasons: int = 3,
    noise: float = 1.0,
    places: int = 2,
    spread: float = 20.0,
    missing: float = 0.1,
) -> Source:
    """A data set of images with made-up times and places, which tell something about the class by construction.

    Nothing about them is real. Class c is seen around month ``12 (c mod seasons) / seasons``, with a normal spread of
    ``noise`` months, at any hour; and around one of ``places`` points at latitude 45, the ``c // seasons``-th (from the
    first again where there are no more), evenly spread over the longitudes, with a normal spread of ``spread`` degrees
    in both directions. So classes share their seasons and places: meta-information alone does not tell all apart.
    ``meta`` is [sin, cos] of month and hour, then the place on the unit sphere: groups of sizes [4, 3].

    Args:
        dataset: the images, as a data block without splits: the name of a source, or a mapping of name and options.
        seasons: how many seasons the classes share; 1: time says nothing.
        noise: standard deviation of the month, in months.
        places: how many places the classes share; 1: place says nothing.
        spread: standard deviation of the place, in degrees.
        missing: share of the images whose time is not known, and of those whose place is not.

    Raises:
        LimbeckError: the data set cannot be opened or makes its own splits, or options out of range.
    """
    if min(seasons, places) < 1 or min(noise, spread) < 0 or not 0 <= missing <= 1:
        raise LimbeckError(
            f"meta_images: seasons {seasons} and places {places} must be at least 1, noise {noise} and spread {spread} "
            f"at least 0, missing {missing} a share from 0 to 1"
        )
    source = open_source(dataset, "meta_images")

    def part(samples: Samples | None, key: str) -> MetaSamples | None:
        if samples is None:
            return None
        draws = torch.from_numpy(uniforms(derive(0, "meta_images", key), np.arange(len(samples)), draws=6))
        normal = torch.special.ndtri(draws[:, :3] + 2.0**-54)  # of 0 it would be -inf
        month = 12 * (samples.labels % seasons) / seasons + noise * normal[:, 0]
        latitude = 45 + spread * normal[:, 1]
        longitude = 360 * ((samples.labels // seasons) % places) / places + spread * normal[:, 2]
        time, place = encode_time(month, 24 * draws[:, 3]), encode_place(latitude, longitude)
        known = (draws[:, 4:] >= missing).float()
        table = torch.zeros(len(samples.images), 7)
        table[samples.rows] = torch.cat([time * known[:, :1], place * known[:, 1:]], dim=-1)
        return MetaSamples(table, **samples.arguments)

    train, test = part(source.train, "train"), part(source.test, "test")
    assert train is not None
    assert test is not None
    return Source(train, test, part(source.validation, "validation"), source.flip)
