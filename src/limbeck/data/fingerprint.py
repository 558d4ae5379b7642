"""A hash of what a run is trained and measured on: equal hash, equal data."""

import hashlib

from limbeck.data.data import Data, Records


def fingerprint(data: Data) -> str:
    """SHA-256 over all that decides a training: the samples of every split, classes and views."""
    digest = hashlib.sha256()
    data.update_hash(digest)
    for split in (data.train, data.validation, data.test, data.unlabeled):
        if split is not None:
            split.update_hash(digest)
    return digest.hexdigest()


def samples_hash(samples: Records) -> str:
    """SHA-256 of what a training on these samples depends on."""
    digest = hashlib.sha256()
    samples.update_hash(digest)
    return digest.hexdigest()
