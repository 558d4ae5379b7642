"""Datasets of the user's own, of any library."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.data.pixels import Lazy, read, to_pixels
from limbeck.data.samples import Samples, check_labels
from limbeck.errors import LimbeckError


class _Decode:
    """Row -> image of a dataset of the user's; a class, since workers may have to pickle it."""

    def __init__(self, dataset: Any, where: str) -> None:
        self.dataset, self.where = dataset, where

    def name(self, row: int) -> str:
        return f"{self.where}, index {row}"

    def pair(self, row: int) -> tuple[Any, Any]:
        item = self.dataset[row]
        if isinstance(item, Mapping):
            if "image" not in item or "label" not in item:
                raise LimbeckError(f"{self.name(row)}: keys {sorted(map(str, item))}, expected 'image' and 'label'")
            return item["image"], item["label"]
        if isinstance(item, tuple | list) and len(item) >= 2:
            return item[0], item[1]
        raise LimbeckError(f"{self.name(row)}: a {type(item).__name__}, expected (image, label) or a dict of them")

    def label(self, row: int, label: Any) -> int:
        try:
            number = int(label)
        except (TypeError, ValueError):
            raise LimbeckError(f"{self.name(row)}: label {label!r} is no class number") from None
        if number != label or number < 0:
            raise LimbeckError(f"{self.name(row)}: label {label!r} is out of range, expected 0, 1, 2 ...")
        return number

    def __call__(self, row: int) -> Tensor:
        return to_pixels(self.pair(row)[0], self.name(row))


def wrap(dataset: Any, classes: Sequence[str] | None = None, *, where: str = "the data set") -> Samples:
    """Samples of any map-style dataset.

    Every item is read once, images are kept in memory where all of them take less than 1 GiB, and lazily
    decoded again otherwise: the dataset must give the plain images, since augmentation is what views are for.

    Args:
        dataset: has ``len()`` and gives ``(image, label)`` or ``{"image": ..., "label": ...}``; images are
            PIL images, arrays [H, W] or [H, W, C], or tensors [C, H, W], uint8 or float in [0, 1].
        classes: the names of the classes; where not given ``dataset.classes``, else "0", "1", ...
        where: what the data set is, for error messages.

    Raises:
        LimbeckError: an item is not what it should be, naming its index.
    """
    if isinstance(dataset, Samples):
        return dataset
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise LimbeckError(f"{where}: a {type(dataset).__name__} has no length and positions; give a map-style dataset")
    count = len(dataset)
    if count == 0:
        raise LimbeckError(f"{where}: there are no samples")
    decode = _Decode(dataset, where)
    labels = torch.empty(count, dtype=torch.int64)

    def both(row: int) -> Tensor:  # labels are picked up on the way, so that no item is read twice
        image, label = decode.pair(row)
        labels[row] = decode.label(row, label)
        return to_pixels(image, decode.name(row))

    images = read(both, count, decode.name)
    if isinstance(images, Lazy):
        images.decode = decode
        for row in range(count):
            labels[row] = decode.label(row, decode.pair(row)[1])
    if classes is None:
        named = getattr(dataset, "classes", None)
        classes = tuple(map(str, named)) if named else tuple(str(number) for number in range(int(labels.max()) + 1))
    check_labels(labels, classes, where)
    return Samples(images, labels, classes)
