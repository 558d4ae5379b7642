"""The two streams of semi-supervised training."""

from collections.abc import Mapping
from typing import Any

from limbeck.data.samples import ImageData, concat
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError

Batches = Mapping[str, Any]
"""One update's batches by the name of their stream."""


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
    if data.unlabeled is None:
        raise LimbeckError(
            "semi-supervised training needs unlabelled samples, and the data have none: say how many of each class are "
            "labelled, for example data.labels_per_class=10"
        )
    everything = concat([data.train.unlabel(), data.unlabeled])
    return {
        "labeled": Stream(data.train, batch_size, seed, views=data.training_views, flip=data.flip),
        "unlabeled": Stream(everything, ratio * batch_size, seed, views=views, name="unlabeled", flip=data.flip),
    }
