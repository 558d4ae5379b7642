"""Multiple-instance bags: groups of images of which only the group has a label."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.data import Batch, Records, ViewedData
from limbeck.data.load import load_images
from limbeck.data.random import derive, permutation, uniforms
from limbeck.data.samples import ImageData, Samples
from limbeck.data.statistics import channel_statistics
from limbeck.errors import LimbeckError, nearest

if TYPE_CHECKING:
    from limbeck.models.classifier import ImageTask

CLASSES = ("negative", "positive")


class InstanceBags(Records):
    """Bags of images, map-style, every bag with its stable ``index``; a bag is positive if one of its images is.

    Per-sample tables count images, not bags: ``num_samples`` is the size of the images' source.

    Args:
        images: all instances, bag after bag; ``labels`` 0 or 1, the label of the bag each lies in; ``hidden_labels``,
            where it is known, whether the instance itself is positive.
        sizes: int64 [bags], how many instances each bag has.

    Attributes:
        labels: int64 [bags].
        hidden_labels: int64 [N], the truth of every instance or None: for metrics, never for training.

    Raises:
        LimbeckError: sizes that do not add up to the images, an empty bag, or a bag with both labels.
    """

    def __init__(self, images: Samples, sizes: Tensor) -> None:
        if not len(sizes) or int(sizes.min()) < 1 or int(sizes.sum()) != len(images):
            raise LimbeckError(
                f"{len(sizes)} bags of {int(sizes.sum())} instances in all, at least one each, cannot be made of "
                f"{len(images)} images"
            )
        self.sizes = sizes
        self.hidden_labels = images.hidden_labels
        self.indices, self.num_samples = torch.arange(len(sizes)), images.num_samples
        self._images = images
        # Where each bag's instances lie, int64 [bags, M]; -1 fills up the smaller ones.
        slots = torch.arange(int(sizes.max()))
        starts = (sizes.cumsum(0) - sizes)[:, None]
        self.places = torch.where(slots < sizes[:, None], starts + slots, -1)
        self.labels = images.labels[starts[:, 0]]
        mixed = torch.nonzero(images.labels != self.labels.repeat_interleave(sizes))[:, 0]
        if len(mixed):
            raise LimbeckError(f"the instance of index {int(images.indices[mixed[0]])} has another label than its bag")

    @property
    def instances(self) -> Samples:
        """All instances one by one, bag after bag, each with the label of its bag and the truth hidden."""
        return Samples(**self._images.arguments | {"hidden_labels": self.hidden_labels})

    def fetch(self, positions: Tensor) -> Batch:
        """The bags at ``positions``, int64 [B], as one batch, filled up to the M instances of the largest bag of all.

        Returns:
            ``image`` float32 [B, M, C, H, W] in [0, 1], 0 where there is no instance; ``mask`` bool [B, M], true
            where there is one; ``label`` and ``index`` int64 [B]; ``instance`` int64 [B, M], the instances' stable
            indices, -1 where there is none; and ``hidden_label`` int64 [B, M] likewise, where it is known.
        """
        places = self.places.index_select(0, positions)
        mask = places >= 0
        inside = self._images.fetch(places[mask])
        batch = {
            "image": spread(inside["image"], mask),
            "mask": mask,
            "label": self.labels.index_select(0, positions),
            "index": self.indices.index_select(0, positions),
            "instance": spread(inside["index"], mask, -1),
        }
        if self.hidden_labels is not None:
            batch["hidden_label"] = spread(self.hidden_labels[places[mask]], mask, -1)
        return batch

    def augment(self, batch: Batch, views: Mapping[str, str], *, seed: int, epochs: Tensor, flip: bool) -> Batch:
        """The batch with one tensor of images a view in the place of ``image``; each instance has draws of its own."""
        if not views:
            return batch
        found = dict(batch)
        image, mask = found.pop("image"), found["mask"]
        inside = {"image": image[mask], "index": found["instance"][mask]}
        epochs = epochs[:, None].expand(mask.shape)[mask]
        seen = self._images.augment(inside, views, seed=seed, epochs=epochs, flip=flip)
        return {**{key: spread(seen[key], mask) for key in views}, **found}

    def check_view(self, view: str) -> None:
        """Refuse an unknown view.

        Raises:
            LimbeckError: there is no such view.
        """
        self._images.check_view(view)

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add the images, with the labels of their bags, and the sizes of the bags."""
        self._images.update_hash(digest)
        digest.update(self.sizes.numpy().tobytes())


def spread(values: Tensor, mask: Tensor, fill: float = 0) -> Tensor:
    """Values [V, ...] of the V true places of a mask [B, M], as [B, M, ...]; ``fill`` elsewhere."""
    found = values.new_full((*mask.shape, *values.shape[1:]), fill)
    found[mask] = values
    return found


@dataclass(frozen=True)
class InstanceBagData(ViewedData):
    """The multiple-instance bags of one run."""

    train: InstanceBags
    validation: InstanceBags
    test: InstanceBags
    unlabeled: None

    @cached_property
    def task(self) -> "ImageTask":
        """What a model needs to know: the two classes and the images; statistics of all training instances."""
        from limbeck.models.classifier import ImageTask

        images = self.train.instances
        channels, height, width = images.shape
        mean, std = channel_statistics([(images.images, images.rows)])
        return ImageTask(self.classes, channels, (height, width), mean, std)


def instance_bags(
    seed: int,
    dataset: str | dict[str, Any] = "digits",
    positive: str | list[str] = "9",
    size: int = 20,
    min_size: int | None = None,
    ratio: float = 0.2,
    positive_bags: float = 0.5,
    bags: int | None = None,
) -> InstanceBagData:
    """Bags of images of a data set, with the label of the bag only (arXiv 2307.02249, the CIFAR bags).

    Some of the classes count as positive, all others as negative. A negative bag holds negative images; a positive one
    holds ``ratio`` of positive ones, at least one. Training, validation and test images make bags of their own, drawn
    at random; no image lies in two bags.

    Args:
        seed: decides the splits, and which images share a bag.
        dataset: the data set, as a data block: the name of a source, or a mapping of name and options. Its view is
            that of the instances.
        positive: name of the positive class, or of several.
        size: largest number of instances a bag.
        min_size: smallest one, drawn evenly; null makes every bag as large as the largest.
        ratio: share of the instances of a positive bag that are positive, rounded, above 0 and at most 1.
        positive_bags: share of the bags that are positive, above 0 and below 1.
        bags: training bags; null makes as many as the images suffice for, as always of validation and test images.

    Raises:
        LimbeckError: the data set cannot be opened or holds no images with classes, an option out of range, or too few
            images for the bags, or for one of each label.
    """
    least = size if min_size is None else min_size
    if not 1 <= least <= size:
        raise LimbeckError(f"instance_bags: bags of {least} to {size} instances; they need 1 or more, the larger last")
    if not 0 < ratio <= 1:
        raise LimbeckError(f"instance_bags: ratio is {ratio}; it must be above 0 and at most 1")
    if not 0 < positive_bags < 1:
        raise LimbeckError(f"instance_bags: positive_bags is {positive_bags}; it must lie between 0 and 1")
    if bags is not None and bags < 2:
        raise LimbeckError(f"instance_bags: bags is {bags}; there must be 2 or more, one of each label")
    data = load_images(dataset, seed, "instance_bags")
    if data.unlabeled is not None or data.train.hidden_labels is not None:
        raise LimbeckError(
            "instance_bags: bags hide the labels of their instances themselves; leave out the dataset's options "
            "labels_per_class and label_noise"
        )
    numbers = _class_numbers(data, [positive] if isinstance(positive, str) else positive)

    def made(samples: Samples, name: str, count: int | None = None) -> InstanceBags:
        truth = torch.isin(samples.labels, torch.tensor(numbers)).long()
        key = derive(seed, "instance_bags", name)
        chosen, sizes, labels = _draw(truth, (least, size), ratio, positive_bags, count, key, name)
        part = samples.subset(chosen)
        changed = {"labels": labels.repeat_interleave(sizes), "classes": CLASSES, "hidden_labels": truth[chosen]}
        return InstanceBags(Samples(**part.arguments | changed), sizes)

    return InstanceBagData(
        made(data.train, "training", bags),
        made(data.validation, "validation"),
        made(data.test, "test"),
        None,
        CLASSES,
        data.view,
        data.flip,
    )


def _class_numbers(data: ImageData, names: list[str]) -> list[int]:
    for name in names:
        if name not in data.classes:
            raise LimbeckError(
                f"instance_bags: positive names the class {name!r}, which is none of {', '.join(data.classes)}."
                f"{nearest(name, data.classes)}"
            )
    if not 0 < len(set(names)) < len(data.classes):
        raise LimbeckError(
            f"instance_bags: {len(set(names))} of {len(data.classes)} classes are positive; at least one must be, and "
            "one must not"
        )
    return [data.classes.index(name) for name in names]


def _draw(
    truth: Tensor,
    sizes: tuple[int, int],
    ratio: float,
    positive_bags: float,
    count: int | None,
    key: int,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the instances, bag after bag, with the size and the label of every bag."""
    kinds = [np.flatnonzero(truth.numpy() == kind) for kind in (0, 1)]
    kinds = [places[permutation(derive(key, kind), len(places))] for kind, places in enumerate(kinds)]
    used = [0, 0]
    chosen: list[torch.Tensor] = []
    lengths: list[int] = []
    labels: list[int] = []
    while count is None or len(labels) < count:
        number = len(labels)
        draw = float(uniforms(derive(key, "size"), np.array([number]), draws=1)[0, 0])
        length = sizes[0] + int(draw * (sizes[1] - sizes[0] + 1))
        # Labels in even turns, so that any number of bags has the share that was asked for; 1e-9 against rounding.
        label = int((number + 1) * positive_bags + 1e-9) - int(number * positive_bags + 1e-9)
        found = max(1, round(ratio * length)) if label else 0
        needed = (length - found, found)
        if any(at + more > len(places) for at, more, places in zip(used, needed, kinds, strict=True)):
            break
        parts = [places[at : at + more] for at, more, places in zip(used, needed, kinds, strict=True)]
        used = [at + more for at, more in zip(used, needed, strict=True)]
        mixed = np.concatenate(parts)[permutation(derive(key, "order", number), length)]
        chosen.append(torch.from_numpy(mixed))
        lengths.append(length)
        labels.append(label)
    if len(labels) < (count or 0) or len(set(labels)) < 2:
        wanted = "a bag of each label" if count is None else f"{count} bags of each label in turn"
        raise LimbeckError(
            f"instance_bags: {len(kinds[0])} negative and {len(kinds[1])} positive {name} images are too few for "
            f"{wanted}, of up to {sizes[1]} instances with {ratio:g} of them positive ({len(labels)} were made): make "
            "fewer or smaller bags, or hold out more images"
        )
    return torch.cat(chosen), torch.tensor(lengths), torch.tensor(labels)
