"""Images with boxes: samples by position, and the sets of them that a run needs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from limbeck.data import box_views
from limbeck.data.bccd import annotated_cells
from limbeck.data.data import Batch, Data, Records
from limbeck.data.digit_scenes import digit_scenes
from limbeck.data.pixels import Images, Memory
from limbeck.data.random import derive, permutation
from limbeck.data.statistics import channel_statistics
from limbeck.errors import LimbeckError

if TYPE_CHECKING:
    from limbeck.models.classifier import ImageTask

_HASHED = 256
"""Images of each split that go into its hash; boxes and positions are hashed in full."""


class PaddedBoxes(NamedTuple):
    """The boxes of N images, as many places for each.

    Attributes:
        boxes: float32 [N, M, 4], x1, y1, x2, y2 in pixels.
        labels: int64 [N, M], class indices; -1 where there is no box.
    """

    boxes: Tensor
    labels: Tensor

    @classmethod
    def of(cls, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> "PaddedBoxes":
        """Lists of one tensor an image, [number, 4] and [number], padded to the largest number."""
        most = max((len(part) for part in labels), default=0)
        padded = cls(torch.zeros(len(boxes), most, 4), torch.full((len(boxes), most), -1))
        for at, (part, label) in enumerate(zip(boxes, labels, strict=True)):
            padded.boxes[at, : len(part)], padded.labels[at, : len(part)] = part, label
        return padded

    def take(self, positions: Tensor) -> "PaddedBoxes":
        """Those of the images at ``positions``."""
        return PaddedBoxes(self.boxes.index_select(0, positions), self.labels.index_select(0, positions))


class BoxSamples(Records):
    """Images of one size with boxes, every sample with its stable ``index``. Images without a box are fine.

    Args:
        images: a set of images.
        truth: the boxes of the N samples.
        classes: the names of the classes.
        rows: int64 [N], where in ``images`` each sample lies; all of them in order where not given.
        labeled: whether the boxes may be learnt from; if not, they travel as hidden boxes, for metrics only.
        min_scale: views make images smaller by a factor drawn uniformly from [min_scale, 1].

    Raises:
        LimbeckError: no samples, lengths that differ, a label outside the classes, a box without area or outside of
            the image (naming the index), or a scale outside (0, 1].
    """

    def __init__(
        self,
        images: Images,
        truth: PaddedBoxes,
        classes: Sequence[str],
        *,
        rows: Tensor | None = None,
        labeled: bool = True,
        min_scale: float = 1.0,
    ) -> None:
        self.images, self.classes, self.min_scale = images, tuple(classes), min_scale
        self.rows = torch.arange(len(images)) if rows is None else rows
        self.indices, self.num_samples = self.rows, len(images)
        self.boxes, self.box_label = truth
        self.hidden_boxes: Tensor | None = None
        self.hidden_box_label: Tensor | None = None
        if not labeled:
            self.hidden_boxes, self.hidden_box_label = truth
            self.boxes, self.box_label = torch.zeros_like(truth.boxes), torch.full_like(truth.labels, -1)
        if len(truth.labels) != len(self.rows):
            raise LimbeckError(f"{len(self.rows)} images but the boxes of {len(truth.labels)}")
        if len(self.rows) == 0:
            raise LimbeckError("there are no images with boxes")
        if not 0 < min_scale <= 1:
            raise LimbeckError(f"min_scale is {min_scale}; it must be above 0 and at most 1")
        _check(truth, self.classes, self.size)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image in pixels."""
        return self.images.shape[1], self.images.shape[2]

    def fetch(self, positions: Tensor) -> Batch:
        """The samples at ``positions``, int64 [B], as one batch.

        Returns:
            ``image`` float32 [B, C, H, W] in [0, 1]; ``boxes`` float32 [B, M, 4], x1, y1, x2, y2 in pixels;
            ``box_label`` int64 [B, M], -1 where there is no box; ``index`` int64 [B]. Of an unlabelled sample every
            ``box_label`` is -1, and the truth is in ``hidden_boxes`` and ``hidden_box_label``.
        """
        batch = {
            "image": self.images.take(self.rows.index_select(0, positions)),
            "boxes": self.boxes.index_select(0, positions),
            "box_label": self.box_label.index_select(0, positions),
            "index": self.indices.index_select(0, positions),
        }
        if self.hidden_boxes is not None and self.hidden_box_label is not None:
            batch["hidden_boxes"] = self.hidden_boxes.index_select(0, positions)
            batch["hidden_box_label"] = self.hidden_box_label.index_select(0, positions)
        return batch

    def augment(self, batch: Batch, views: Mapping[str, str], *, seed: int, epochs: Tensor, flip: bool) -> Batch:
        """The batch with its views in the place of ``image``, see :mod:`limbeck.data.box_views`.

        Beside the image of every view lies its matrix [B, 3, 3], under ``KEY_matrix``: it maps the coordinates of the
        boxes in the data to those of the view. Where a view is called ``image`` the boxes follow it, and a box that
        has no area left is taken out; otherwise they stay where they are in the data.
        """
        if not views:
            return batch
        found = dict(batch)
        image = found.pop("image")
        for key, name in views.items():
            view = box_views.apply(
                name,
                image,
                seed=seed,
                epochs=epochs,
                indices=found["index"],
                flip=flip,
                min_scale=self.min_scale,
            )
            found[key], found[f"{key}_matrix"] = view
        if "image" in views:
            for boxes, labels in (("boxes", "box_label"), ("hidden_boxes", "hidden_box_label")):
                if boxes in found:
                    found[boxes], found[labels] = box_views.move_boxes(
                        found["image_matrix"], found[boxes], found[labels], self.size
                    )
        return found

    def check_view(self, view: str) -> None:
        """Refuse an unknown view.

        Raises:
            LimbeckError: there is no such view.
        """
        box_views.check_view(view)

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add boxes, labels, rows and evenly spaced images."""
        digest.update(f"{len(self)} {self.images.shape} {self.min_scale} {self.classes}".encode())
        for values in (self.rows, self.box_label, self.boxes):
            digest.update(values.numpy().tobytes())
        positions = torch.linspace(0, len(self) - 1, min(_HASHED, len(self))).long()
        digest.update(self.images.take(self.rows[positions]).numpy().tobytes())


@dataclass(frozen=True)
class BoxData(Data):
    """The images with boxes of one run.

    Attributes:
        flip: whether views may mirror images.
        left_out: boxes without area that the source holds and that were left out.
    """

    train: BoxSamples
    validation: BoxSamples
    test: BoxSamples
    unlabeled: BoxSamples | None
    flip: bool = True
    left_out: int = 0

    @property
    def training_views(self) -> Mapping[str, str]:
        """``image`` in the view of plain supervised training."""
        return {"image": "labeled"}

    @cached_property
    def task(self) -> "ImageTask":
        """What a model needs to know; mean and standard deviation of all training images, labelled or not."""
        from limbeck.models.classifier import ImageTask

        parts = [(part.images, part.rows) for part in (self.train, self.unlabeled) if part is not None]
        mean, std = channel_statistics(parts)
        return ImageTask(self.classes, self.train.images.shape[0], self.train.size, mean, std)


def bccd(seed: int, root: str | None = None, size: int = 160, labeled: float = 0.1, min_scale: float = 1.0) -> BoxData:
    """Blood cells under the microscope (BCCD): 205 training, 87 validation and 72 test images, three classes.

    Images of 640 x 480 with red cells, white cells and platelets; the splits are the source's own. Which training
    images are labelled is drawn with the seed of the run; the rest is the unlabelled data. Boxes without area (there
    are two) are left out.

    Args:
        seed: the seed of the run.
        root: folder that holds JPEGImages, Annotations and ImageSets; null looks for BCCD below $LIMBECK_DATA.
        size: height in pixels to which the images are resized, their proportions kept.
        labeled: share of the training images whose boxes are known; 1 leaves none unlabelled.
        min_scale: training views make images smaller by a factor drawn uniformly from [min_scale, 1].

    Raises:
        LimbeckError: the data are not there or cannot be read, or a share or size that leaves nothing.
    """
    parts, classes, left_out = annotated_cells(root, size)
    whole = {
        name: (Memory(images, f"BCCD, {name}"), PaddedBoxes.of(boxes, labels))
        for name, (images, boxes, labels) in parts.items()
    }
    return _split(whole, classes, labeled, min_scale, seed, flip=True, left_out=left_out)


def digit_boxes(
    seed: int,
    size: int = 96,
    labeled: float = 0.1,
    train: int = 200,
    validation: int = 40,
    test: int = 80,
    most: int = 4,
    min_scale: float = 1.0,
) -> BoxData:
    """Scikit-learn's handwritten digits, enlarged and pasted on a noisy canvas; no data needed.

    The images are the same in every run; those of the test split show digits that the others do not. Some images are
    empty. Which training images are labelled is drawn with the seed of the run.

    Args:
        seed: the seed of the run.
        size: side of the square images in pixels, at least 32.
        labeled: share of the training images whose boxes are known; 1 leaves none unlabelled.
        train: number of training images, labelled or not.
        validation: number of validation images.
        test: number of test images.
        most: an image shows from none up to this many digits.
        min_scale: training views make images smaller by a factor drawn uniformly from [min_scale, 1].

    Raises:
        LimbeckError: an option out of range.
    """
    counts = {"train": train, "validation": validation, "test": test}
    whole = {}
    for name, (images, boxes, labels) in digit_scenes(counts, size, most).items():
        whole[name] = Memory(images, f"digit_boxes, {name}"), PaddedBoxes.of(boxes, labels)
    return _split(whole, tuple(map(str, range(10))), labeled, min_scale, seed, flip=False, left_out=0)


def _split(
    whole: Mapping[str, tuple[Images, PaddedBoxes]],
    classes: tuple[str, ...],
    labeled: float,
    min_scale: float,
    seed: int,
    *,
    flip: bool,
    left_out: int,
) -> BoxData:
    """The data of a run: a share of the training images keeps its boxes, the rest is unlabelled."""
    if not 0 < labeled <= 1:
        raise LimbeckError(f"labeled is {labeled}; it must be a share above 0 and at most 1")
    count = len(whole["train"][0])
    known = max(1, round(labeled * count))
    order = torch.from_numpy(permutation(derive(seed, "labeled"), count))

    def samples(name: str, rows: Tensor | None = None, labeled: bool = True) -> BoxSamples:
        images, truth = whole[name]
        own = truth if rows is None else truth.take(rows)
        return BoxSamples(images, own, classes, rows=rows, labeled=labeled, min_scale=min_scale)

    return BoxData(
        train=samples("train", order[:known].sort().values),
        validation=samples("validation"),
        test=samples("test"),
        unlabeled=samples("train", order[known:].sort().values, labeled=False) if known < count else None,
        classes=classes,
        flip=flip,
        left_out=left_out,
    )


def _check(truth: PaddedBoxes, classes: Sequence[str], size: tuple[int, int]) -> None:
    boxes, labels = truth
    used = labels >= 0
    sides = boxes[..., 2:] - boxes[..., :2]
    limit = boxes.new_tensor([size[1], size[0]])
    outside = ((boxes[..., 2:] > limit) | (boxes[..., :2] < 0)).any(-1)
    wrong = {
        f"has a label outside of 0 to {len(classes) - 1}": (labels < -1) | (labels >= len(classes)),
        "has a box without area": used & ~(sides > 0).all(-1),  # true for NaN too
        f"has a box outside of its {size[0]}x{size[1]} pixels": used & outside,
    }
    for what, where in wrong.items():
        if where.any():
            raise LimbeckError(f"the image at index {int(torch.nonzero(where)[0, 0])} {what}")
