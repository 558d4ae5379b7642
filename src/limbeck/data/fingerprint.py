"""A hash of what a run is trained and measured on: equal hash, equal data."""

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from limbeck.data.samples import ImageData, Samples

LOOKED_AT = 256
"""Images of each split that are hashed; labels and positions are hashed in full."""


def fingerprint(data: "ImageData") -> str:
    """SHA-256 over labels, indices, view and evenly spaced images of every split."""
    digest = hashlib.sha256(f"{data.classes} {data.view} {data.flip}".encode())
    for split in (data.train, data.validation, data.test, data.unlabeled):
        if split is not None:
            _add(digest, split)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", samples: "Samples") -> None:
    digest.update(f"{len(samples)} {samples.shape} {samples.num_samples}".encode())
    for values in (samples.labels, samples.indices):
        digest.update(values.numpy().tobytes())
    positions = torch.linspace(0, len(samples) - 1, min(LOOKED_AT, len(samples))).long()
    digest.update(samples.images.take(samples.rows[positions]).numpy().tobytes())
