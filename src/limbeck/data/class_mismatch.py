"""A data set whose unlabelled images are partly of classes that nobody asks for."""

import dataclasses
import math
from typing import Any

import torch

from limbeck.data.load import open_source
from limbeck.data.random import derive, permutation
from limbeck.data.samples import ImageData, Samples, concat
from limbeck.data.splits import Split, split
from limbeck.data.variant import choose_classes
from limbeck.errors import LimbeckError

_SPLIT_OPTIONS = tuple(field.name for field in dataclasses.fields(Split))


def class_mismatch(
    seed: int,
    dataset: str | dict[str, Any] = "digits",
    classes: list[str] | None = None,
    mismatch: float = 0.6,
    unknown: list[str] | None = None,
) -> ImageData:
    """Class-distribution mismatch: some classes are the task, and images of others hide among the unlabelled ones.

    Of n unlabelled images of the task's classes and those of the others a share ``mismatch`` is of the others:
    ``ceil(mismatch n / (1 - mismatch))`` images (the protocol of arXiv 1804.09170 and of WAD, arXiv 2308.11874). They
    are of no class, and hide -1. Validation and test images are of the task's classes only. All images keep their
    positions in the data set. For images of another data set see :func:`limbeck.data.open_set.open_set`.

    Args:
        seed: decides the splits, and which images are taken.
        dataset: a data block whose splits (``labels_per_class`` first of all) are of the task's classes.
        classes: names of the task's classes; null: the first half.
        mismatch: share of unknown classes in the unlabelled images, from 0 to below 1.
        unknown: names of the unknown classes; null: all others.

    Raises:
        LimbeckError: the data set cannot be opened or split so, a class that is not there or on both sides, or too few
            images of unknown classes for the mismatch.
    """
    if not 0 <= mismatch < 1:
        raise LimbeckError(f"class_mismatch: mismatch is {mismatch}, expected a share from 0 to below 1")
    block: dict[str, Any] = {"name": dataset} if isinstance(dataset, str) else dict(dataset)
    how = Split(**{name: block.pop(name) for name in _SPLIT_OPTIONS if name in block})
    source = open_source(block, "class_mismatch")
    target = list(source.classes[: len(source.classes) // 2]) if classes is None else classes
    others = [name for name in source.classes if name not in target] if unknown is None else unknown
    both = sorted(set(target) & set(others))
    if both:
        raise LimbeckError(f"class_mismatch: {both} cannot be known and unknown")
    data = split(choose_classes(source, target, 0, "class_mismatch"), how, seed)
    if data.unlabeled is None:
        raise LimbeckError(
            "class_mismatch: there are no unlabelled images to hide others among: say how many of each class are "
            "labelled, as in dataset.labels_per_class=10"
        )
    # Rounded first: 0.8 * 100 / (1 - 0.8) is a little above 400.
    count = math.ceil(round(mismatch * len(data.unlabeled) / (1 - mismatch), 6))
    if count == 0:
        return data
    strangers = choose_classes(source, others, 0, "class_mismatch").train
    if count > len(strangers):
        raise LimbeckError(
            f"class_mismatch: beside {len(data.unlabeled)} unlabelled images of {', '.join(target)} a mismatch of "
            f"{mismatch} needs {count} of unknown classes, and there are {len(strangers)}; take fewer of the first by "
            "dataset.train_size"
        )
    chosen = torch.from_numpy(permutation(derive(seed, "class_mismatch"), len(strangers))[:count]).sort().values
    nothing = torch.full((count,), -1)
    hidden = {"labels": nothing, "hidden_labels": nothing, "classes": data.classes}
    return dataclasses.replace(
        data, unlabeled=concat([data.unlabeled, Samples(**strangers.subset(chosen).arguments | hidden)])
    )
