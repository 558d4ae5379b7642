"""The two streams of semi-supervised training."""

from collections.abc import Mapping
from typing import Any

from limbeck.data.samples import ImageData, Samples, concat
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError

Batches = Mapping[str, Any]
"""One update's batches by the name of their stream."""


def without_labels(data: ImageData) -> Samples:
    """All training images, labelled or not, without their labels."""
    return concat([data.train.unlabel(), *([] if data.unlabeled is None else [data.unlabeled])])


def labeled_and_unlabeled(
    data: ImageData, batch_size: int, seed: int, *, ratio: int, views: Mapping[str, str]
) -> dict[str, Stream]:
    """``labeled``: the labelled samples in their training view; ``unlabeled``: all samples without their labels.

    The labelled samples are among the unlabelled ones too, as in MixMatch, FixMatch and what followed them
    (arXiv 2001.07685, section 2).

    Args:
        data: with unlabelled samples.
        batch_size: labelled samples a batch.
        seed: the seed of the fit.
        ratio: unlabelled samples for each labelled one.
        views: key in the unlabelled batch -> name of a view.

    Raises:
        LimbeckError: there are no unlabelled samples.
    """
    _unlabeled(data)
    every = without_labels(data)
    return {
        "labeled": Stream(data.train, batch_size, seed, views=data.training_views, flip=data.flip),
        "unlabeled": Stream(every, ratio * batch_size, seed, views=views, name="unlabeled", flip=data.flip),
    }


def labeled_beside_unlabeled(data: ImageData, batch_size: int, seed: int) -> dict[str, Stream]:
    """``labeled``: the labelled samples; ``unlabeled``: the others, as many a batch; both in their training view.

    Raises:
        LimbeckError: there are no unlabelled samples.
    """
    views, flip = data.training_views, data.flip
    return {
        "labeled": Stream(data.train, batch_size, seed, views=views, flip=flip),
        "unlabeled": Stream(_unlabeled(data), batch_size, seed, views=views, name="unlabeled", flip=flip),
    }


def _unlabeled(data: ImageData) -> Samples:
    if data.unlabeled is None:
        raise LimbeckError(
            "semi-supervised training needs unlabelled samples, and the data have none: say how many of each class are "
            "labelled, for example data.labels_per_class=10"
        )
    return data.unlabeled
