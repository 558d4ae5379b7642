"""Which samples train, validate and stay unlabelled: pure functions of a seed."""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.long_tail import Tail, tail_sizes
from limbeck.data.random import derive, permutation, uniforms
from limbeck.data.samples import ImageData, Samples, Source
from limbeck.data.views import check
from limbeck.errors import LimbeckError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """How the training data of a source is cut for one run, in this order.

    Args:
        train_size: number of samples to keep, each class in proportion; all of them where not given.
        labels_per_class: labelled samples of each class; the rest becomes the unlabelled data.
        imbalance: size of the largest class over that of the smallest, classes in order with sizes that fall;
            class 0 is the largest.
        tail: how the class sizes fall, exponential (arXiv 1901.05555) or pareto (a power of the class's rank), see
            :func:`limbeck.data.long_tail.tail_sizes`.
        label_noise: fraction of the training labels that are replaced by another class, drawn uniformly; the
            true ones travel as hidden labels.
        validation: fraction (below 1) or number (from 1 on) of training samples to hold out, each class in
            proportion; taken first, and only from a source without validation data of its own.
        split_seed: seed of all these draws; where not given, that of the run.
        view: augmentation of the training images: none, weak, strong or crop.

    Raises:
        LimbeckError: a value outside its range.
    """

    train_size: int | None = None
    labels_per_class: int | None = None
    imbalance: float | None = None
    tail: Tail = "exponential"
    label_noise: float = 0.0
    validation: float | int = 0.1
    split_seed: int | None = None
    view: str = "weak"

    def __post_init__(self) -> None:
        for name in ("train_size", "labels_per_class", "imbalance"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LimbeckError(f"{name} is {value}, expected at least 1")
        if self.tail not in get_args(Tail):
            raise LimbeckError(f"tail is {self.tail!r}, expected {' or '.join(get_args(Tail))}")
        if not 0 <= self.label_noise < 1:
            raise LimbeckError(f"label_noise is {self.label_noise}, expected a fraction from 0 to below 1")
        if self.validation <= 0:
            raise LimbeckError(
                f"validation is {self.validation}: the validation data would be empty, and settings and "
                "temperatures are fitted on it; give a fraction such as 0.1 or a number of samples"
            )
        if self.validation >= 1 and self.validation != int(self.validation):
            raise LimbeckError(f"validation is {self.validation}, expected a fraction below 1 or a whole number")
        check(self.view)


def split(source: Source, how: Split, seed: int) -> ImageData:
    """Cut a source as ``how`` says, with the seed of the run unless ``how`` has one of its own.

    Raises:
        LimbeckError: a part would be empty or a class has too few samples, with the counts.
    """
    seed = seed if how.split_seed is None else how.split_seed
    train, validation = source.train, source.validation
    if validation is None:
        train, validation = _validation(train, how.validation, seed)
    if how.train_size is not None:
        if how.train_size > len(train):
            raise LimbeckError(f"train_size is {how.train_size}, but there are {len(train)} training samples")
        train = train.subset(_stratified(train, how.train_size, derive(seed, "train_size")))
    if how.imbalance is not None:
        train = _long_tail(train, how.imbalance, how.tail, seed)
    unlabeled: Samples | None = None
    if how.labels_per_class is not None:
        train, unlabeled = _few_labels(train, how.labels_per_class, seed)
    if how.label_noise > 0:
        train = _noisy(train, how.label_noise, seed)
    return ImageData(train, validation, source.test, unlabeled, source.classes, how.view, source.flip)


def hold_out(samples: Samples, fraction: float) -> tuple[Samples, Samples]:
    """Training and test samples of a data set that has no test split.

    Each class in proportion, the same in every run.

    Raises:
        LimbeckError: one of the two would be empty.
    """
    count = round(fraction * len(samples))
    if not 0 < count < len(samples):
        raise LimbeckError(f"{len(samples)} samples are too few to hold out {fraction:.0%} of them for testing")
    chosen = _stratified(samples, count, derive(0, "test"))
    return samples.subset(_others(samples, chosen)), samples.subset(chosen)


def balanced(samples: Samples, count: int, seed: int) -> Samples:
    """At most ``count`` of the samples, the classes as even as their sizes allow; those without a label are left out.

    Raises:
        LimbeckError: no sample has a label, or fewer than one is asked for.
    """
    members = _class_positions(samples, derive(seed, "balanced"))
    # The first of every class, then the second of every class ...
    rounds = np.concatenate([np.arange(len(places)) for places in members])
    order = np.concatenate(members)[np.argsort(rounds, kind="stable")]
    return samples.subset(torch.from_numpy(np.sort(order[:count])))


def _class_positions(samples: Samples, key: int) -> list[Ints]:
    """For each class the positions of its samples, in random order."""
    labels = samples.labels.numpy()
    members = [np.flatnonzero(labels == number) for number in range(len(samples.classes))]
    return [places[permutation(derive(key, number), len(places))] for number, places in enumerate(members)]


def _sorted(parts: list[Ints]) -> Tensor:
    return torch.from_numpy(np.sort(np.concatenate(parts)))


def _others(samples: Samples, chosen: Tensor) -> Tensor:
    free = torch.ones(len(samples), dtype=torch.bool)
    free[chosen] = False
    return torch.nonzero(free)[:, 0]


def _stratified(samples: Samples, count: int, key: int) -> Tensor:
    """``count`` positions in order, each class in proportion; the largest remainders make up the number."""
    members = _class_positions(samples, key)
    exact = np.array([len(places) for places in members]) * (count / len(samples))
    # Without the rounding, a share such as 2.9999999999999996 would lose a sample to another class.
    shares = np.floor(exact.round(9)).astype(np.int64)
    by_remainder = np.argsort(-(exact - shares).round(9), kind="stable")
    shares[by_remainder[: count - int(shares.sum())]] += 1
    return _sorted([places[:share] for places, share in zip(members, shares, strict=True)])


def _validation(train: Samples, amount: float | int, seed: int) -> tuple[Samples, Samples]:
    count = int(amount) if amount >= 1 else round(amount * len(train))
    if count == 0:
        raise LimbeckError(
            f"the validation data would be empty: {amount} of {len(train)} training samples; ask for more"
        )
    if count >= len(train):
        raise LimbeckError(f"validation takes {count} of {len(train)} training samples and leaves none; ask for fewer")
    chosen = _stratified(train, count, derive(seed, "validation"))
    return train.subset(_others(train, chosen)), train.subset(chosen)


def _long_tail(train: Samples, ratio: float, tail: Tail, seed: int) -> Samples:
    members = _class_positions(train, derive(seed, "imbalance"))
    sizes = tail_sizes([len(places) for places in members], ratio, tail, train.classes)
    return train.subset(_sorted([places[:size] for places, size in zip(members, sizes, strict=True)]))


def _few_labels(train: Samples, count: int, seed: int) -> tuple[Samples, Samples]:
    members = _class_positions(train, derive(seed, "labels_per_class"))
    for name, places in zip(train.classes, members, strict=True):
        if len(places) < count:
            raise LimbeckError(f"labels_per_class is {count}, but class {name!r} has {len(places)} training samples")
    chosen = _sorted([places[:count] for places in members])
    if len(chosen) == len(train):
        raise LimbeckError(
            f"labels_per_class is {count}: that labels all {len(train)} samples and leaves none unlabelled"
        )
    return train.subset(chosen), train.subset(_others(train, chosen)).unlabel()


def _noisy(train: Samples, fraction: float, seed: int) -> Samples:
    classes = len(train.classes)
    if classes < 2:
        raise LimbeckError("label_noise needs at least two classes")
    wrong = torch.from_numpy(permutation(derive(seed, "noisy"), len(train))[: round(fraction * len(train))])
    draws = uniforms(derive(seed, "noise"), wrong.numpy(), draws=1)[:, 0]
    labels = train.labels.clone()
    labels[wrong] = (labels[wrong] + 1 + torch.from_numpy((draws * (classes - 1)).astype(np.int64))) % classes
    return train.relabel(labels)
