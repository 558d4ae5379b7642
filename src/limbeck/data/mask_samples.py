"""Images with one label a pixel, by position, and the sets of them that a run needs."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from limbeck.data import mask_views
from limbeck.data.data import Batch, Data, Records
from limbeck.data.mask_views import Window
from limbeck.data.pixels import Images
from limbeck.data.random import derive, permutation
from limbeck.data.statistics import channel_statistics
from limbeck.errors import LimbeckError

if TYPE_CHECKING:
    from limbeck.models.classifier import ImageTask

_HASHED = 256


class Masks(Protocol):
    """Masks of one shape, by row."""

    shape: tuple[int, int]
    """Height, width."""

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> Tensor:
        """Fresh int64 masks [B, H, W] of the ``rows``, int64 [B]: classes, -1 where there is none."""
        ...


class MemoryMasks:
    """Masks kept as one tensor of 16 bits a pixel.

    Args:
        values: whole numbers [N, H, W]; classes, -1 where there is none.
        num_classes: C.
        where: what the masks are, for error messages.

    Raises:
        LimbeckError: a wrong shape or type, or a class out of range, with the row.
    """

    def __init__(self, values: Tensor, num_classes: int, where: str = "the masks") -> None:
        if values.ndim != 3 or values.is_floating_point():
            raise LimbeckError(
                f"{where}: shape {list(values.shape)} of {values.dtype}, expected whole numbers [N, height, width]"
            )
        for row, mask in enumerate(values):
            check_mask(mask, num_classes, f"{where}, row {row}")
        self.shape = (values.shape[1], values.shape[2])
        self.values = values.to(torch.int16)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Tensor) -> Tensor:
        """See :class:`Masks`."""
        return self.values.index_select(0, rows).long()


class LazyMasks:
    """Masks decoded every time they are asked for.

    Args:
        decode: row -> one mask, whole numbers [H, W]; picklable, for workers that are spawned.
        count: how many there are.
        shape: what every mask must come out as.
        where: row -> what that mask is, for error messages.
    """

    def __init__(
        self, decode: Callable[[int], Tensor], count: int, shape: tuple[int, int], where: Callable[[int], str]
    ) -> None:
        self.decode, self.count, self.shape, self.where = decode, count, shape, where

    def __len__(self) -> int:
        return self.count

    def take(self, rows: Tensor) -> Tensor:
        """See :class:`Masks`."""
        masks = [self.decode(row).long() for row in rows.tolist()]
        for row, mask in zip(rows.tolist(), masks, strict=True):
            if tuple(mask.shape) != self.shape:
                raise LimbeckError(f"{self.where(row)} is {list(mask.shape)}, {self.where(0)} is {list(self.shape)}")
        return torch.stack(masks)


def check_mask(mask: Tensor, num_classes: int, where: str) -> None:
    """Refuse a mask with a class out of range.

    Raises:
        LimbeckError: naming ``where`` and the class.
    """
    low, high = int(mask.min()), int(mask.max())
    if low < -1 or high >= num_classes:
        wrong = low if low < -1 else high
        raise LimbeckError(
            f"{where}: class {wrong} is out of range, expected 0 to {num_classes - 1} ({num_classes} classes), or -1 "
            "for pixels without a class"
        )


class MaskSamples(Records):
    """Images with one label a pixel.

    Args:
        images: [N, C, H, W].
        masks: [N, H, W]; none where nothing is known.
        classes: the names of the classes.
        rows: int64 [M], where each sample lies in ``images`` and ``masks``; all of them in order where not given.
            They are the samples' stable indices too.
        labeled: whether the masks may be trained on; otherwise they are hidden: for metrics, never for training.
        window: what views of the images show; all of the image, unzoomed, where not given.

    Attributes:
        hidden_rows: int64 [M], where in ``masks`` the truth of each sample lies if it is hidden.

    Raises:
        LimbeckError: no samples, or masks that do not fit the images.
    """

    def __init__(
        self,
        images: Images,
        masks: Masks | None,
        classes: Sequence[str],
        *,
        rows: Tensor | None = None,
        labeled: bool = True,
        window: Window | None = None,
    ) -> None:
        self.images, self.masks, self.classes, self.labeled = images, masks, tuple(classes), labeled
        self.rows = torch.arange(len(images)) if rows is None else rows
        self.indices, self.num_samples = self.rows, len(images)
        self.hidden_rows = None if labeled or masks is None else self.rows
        self.window = Window(self.size, (1.0, 1.0)) if window is None else window
        if not len(self.rows):
            raise LimbeckError("there are no images with masks")
        if masks is None:
            if labeled:
                raise LimbeckError("images without masks cannot be labelled")
        elif (len(masks), *masks.shape) != (len(images), *self.size):
            raise LimbeckError(
                f"{len(images)} images of {list(self.size)} but {len(masks)} masks of {list(masks.shape)}: give one "
                "mask of the same height and width an image"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image."""
        return self.images.shape[1], self.images.shape[2]

    def fetch(self, positions: Tensor) -> Batch:
        """The samples at ``positions``, int64 [B], as one batch.

        Returns:
            ``image`` float32 [B, C, H, W] in [0, 1]; ``mask`` int64 [B, H, W], -1 where a pixel has no label;
            ``index`` int64 [B]; and ``hidden_mask`` int64 [B, H, W] where the truth is known but hidden.
        """
        rows = self.rows.index_select(0, positions)
        batch = {"image": self.images.take(rows), "index": self.indices.index_select(0, positions)}
        if self.masks is not None and self.labeled:
            return {**batch, "mask": self.masks.take(rows)}
        batch["mask"] = torch.full((len(rows), *self.size), -1)
        if self.masks is not None and self.hidden_rows is not None:
            batch["hidden_mask"] = self.masks.take(self.hidden_rows.index_select(0, positions))
        return batch

    def augment(self, batch: Batch, views: Mapping[str, str], *, seed: int, epochs: Tensor, flip: bool) -> Batch:
        """The batch with one image tensor a view in the place of ``image``, see :mod:`limbeck.data.mask_views`."""
        if not views:
            return batch
        found = dict(batch)
        image, index = found.pop("image"), found["index"]
        masks: dict[str, Tensor] = {name: found.pop(name) for name in ("mask", "hidden_mask") if name in found}
        shown = mask_views.apply(views, image, masks, self.window, seed=seed, epochs=epochs, indices=index, flip=flip)
        return {**shown, **found}

    def check_view(self, view: str) -> None:
        """Refuse an unknown view.

        Raises:
            LimbeckError: there is no such view.
        """
        mask_views.check(view)

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Add rows, window, and evenly spaced images and masks."""
        digest.update(f"{len(self)} {self.images.shape} {self.classes} {self.labeled} {self.window}".encode())
        digest.update(self.rows.numpy().tobytes())
        batch = self.fetch(torch.linspace(0, len(self) - 1, min(_HASHED, len(self))).long())
        for name in ("image", "mask"):  # what is hidden decides nothing
            digest.update(batch[name].numpy().tobytes())


@dataclass(frozen=True)
class MaskData(Data):
    """The images with one label a pixel of one run.

    Attributes:
        flip: whether views may mirror images.
    """

    train: MaskSamples
    validation: MaskSamples
    test: MaskSamples
    unlabeled: MaskSamples | None
    flip: bool = True

    @property
    def training_views(self) -> Mapping[str, str]:
        """``image`` in the view of plain supervised training."""
        return {"image": "weak"}

    @cached_property
    def task(self) -> "ImageTask":
        """What a model needs to know; mean and standard deviation of all training images, labelled or not."""
        from limbeck.models.classifier import ImageTask

        parts = [self.train] + ([] if self.unlabeled is None else [self.unlabeled])
        mean, std = channel_statistics((part.images, part.rows) for part in parts)
        return ImageTask(self.classes, self.train.images.shape[0], self.train.size, mean, std)


def split_masks(
    whole: Mapping[str, tuple[Images, Masks]],
    classes: tuple[str, ...],
    *,
    labeled: float,
    seed: int,
    crop: tuple[int, int] | None,
    scale: tuple[float, float],
    flip: bool,
) -> MaskData:
    """The data of a run: a share of the training images keeps its masks, the rest is unlabelled.

    Args:
        whole: images and masks of ``train``, ``validation`` and ``test``.
        classes: the names of the classes.
        labeled: share of the training images, drawn with the seed; 1 leaves none unlabelled.
        seed: the seed of the run.
        crop: height and width of training views; the images' own where not given.
        scale: smallest and largest zoom of training views.
        flip: whether views may mirror images.

    Raises:
        LimbeckError: a share out of range, or an impossible crop or scale.
    """
    if not 0 < labeled <= 1:
        raise LimbeckError(f"labeled is {labeled}; it must be a share above 0 and at most 1")
    images = whole["train"][0]
    window = Window((images.shape[1], images.shape[2]) if crop is None else crop, scale)
    known = max(1, round(labeled * len(images)))
    order = torch.from_numpy(permutation(derive(seed, "labeled"), len(images)))

    def samples(name: str, rows: Tensor | None = None, labeled: bool = True) -> MaskSamples:
        return MaskSamples(*whole[name], classes, rows=rows, labeled=labeled, window=window)

    return MaskData(
        train=samples("train", order[:known].sort().values),
        validation=samples("validation"),
        test=samples("test"),
        unlabeled=samples("train", order[known:].sort().values, labeled=False) if known < len(images) else None,
        classes=classes,
        flip=flip,
    )
