"""Views: the augmented readings of an image, by name.

- ``none``: the image itself.
- ``weak``: shifted by up to an eighth of its size, the border filled by reflection; mirrored where allowed.
- ``strong``: weak, then RandAugment and Cutout as FixMatch has them (arXiv 2001.07685, appendix D).
- ``mild``: ten operations of RandAugment of magnitude 1 (arXiv 2307.08809, section 5), nothing else.
- ``crop``: a random part of 8 to 100 % of the area, resized (arXiv 1409.4842); mirrored where allowed. With other
  shares of the area: ``crop@0.2-1``.
- ``simclr``: crop, then jittered colours, grey and blur as SimCLR has them on ImageNet (arXiv 2002.05709, appendix A);
  ``simclr_cifar``: as on CIFAR-10, with half the jitter and no blur. Both take shares of the area like crop.

A second, independent reading of the same kind has a number after its name: ``strong:2``. What is random about
a view depends on (seed, epoch, index, full name of the view) only.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from limbeck.data import contrastive_views, crops, rand_augment
from limbeck.data.random import derive, uniforms
from limbeck.errors import LimbeckError, nearest

PIECE = 1 << 21
"""Pixels that are worked on at once: such arrays stay in a cache, and their memory is used again by the next piece."""

Draws = NDArray[np.float64]  # [B, number of draws], uniform in [0, 1)


def _mirror(images: Tensor, draws: Draws, flip: bool) -> Tensor:
    """Some of the images mirrored, in place."""
    if flip:
        rows = np.flatnonzero(draws < 0.5)
        images.numpy()[rows] = images.index_select(0, torch.from_numpy(rows)).flip(-1).numpy()
    return images


def _weak(images: Tensor, draws: Draws, flip: bool) -> Tensor:
    height, width = size = images.shape[-2:]
    down, right = (min(max(1, length // 8), length - 1) for length in size)
    padded = F.pad(images, (right, right, down, down), mode="reflect").numpy()
    top, left = ((draws[:, axis] * (2 * margin + 1)).astype(np.int64) for axis, margin in enumerate((down, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    return _mirror(torch.from_numpy(windows[np.arange(len(images)), :, top, left]), draws[:, 2], flip)


def _strong(images: Tensor, draws: Draws, flip: bool) -> Tensor:
    used = rand_augment.DRAWS
    augmented = rand_augment.rand_augment(_weak(images, draws[:, :3], flip), draws[:, 3 : 3 + used])
    return rand_augment.cutout(augmented, draws[:, 3 + used :])


def _mild(images: Tensor, draws: Draws, flip: bool) -> Tensor:
    return rand_augment.mild_augment(images, draws)


def _crop(images: Tensor, draws: Draws, flip: bool, low: float = 0.08, high: float = 1.0) -> Tensor:
    from torchvision.transforms.v2 import functional

    height, width = size = list(images.shape[-2:])
    boxes = crops.draw_boxes(height, width, draws[:, : crops.DRAWS], low, high)
    views = torch.empty_like(images)
    for at, box in enumerate(zip(*(part.tolist() for part in boxes), strict=True)):
        views[at] = functional.resized_crop(images[at], *box, size, antialias=True)
    return _mirror(views.clamp_(0, 1), draws[:, -1], flip)


_VIEWS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "weak": (_weak, 3),
    "strong": (_strong, 3 + rand_augment.DRAWS + 2),
    "mild": (_mild, 2 * rand_augment.MILD),
    "crop": (_crop, crops.DRAWS + 1),
    "simclr": (contrastive_views.simclr, contrastive_views.DRAWS),
    "simclr_cifar": (
        functools.partial(contrastive_views.simclr, strength=0.5, blur=False),
        contrastive_views.DRAWS,
    ),
}
_PARTS = ("crop", "simclr", "simclr_cifar")
"""Views of a part of the image, whose share of the area may be given."""


def check(view: str) -> str:
    """The kind of a view: its name without the number.

    Raises:
        LimbeckError: there is no such view.
    """
    name, _, number = view.partition(":")
    kind, _, area = name.partition("@")
    if kind not in ("none", *_VIEWS) or (":" in view and not number.isdigit()):
        known = ["none", *_VIEWS]
        raise LimbeckError(f"there is no view {view!r}; known: {', '.join(known)}.{nearest(kind, known)}")
    if "@" in name:
        _area(kind, area, view)
    return kind


def _area(kind: str, area: str, view: str) -> tuple[float, float]:
    """The shares of the area between which a crop lies."""
    try:
        low, high = map(float, area.split("-"))
    except ValueError:
        low = high = 0.0
    if kind not in _PARTS or not 0 < low <= high <= 1:
        raise LimbeckError(f"there is no view {view!r}; parts of an image of 20 to 100 % of its area are crop@0.2-1")
    return low, high


def apply(view: str, images: Tensor, *, seed: int, epochs: Tensor, indices: Tensor, flip: bool) -> Tensor:
    """One view of each image.

    A sample's view depends on ``seed``, its own epoch, index and image, and the name of the view: not on the
    other samples of the batch, the process that computes it, or any generator's state.

    Args:
        view: a name, see the module's documentation.
        images: float [B, 1 or 3, H, W] in [0, 1], on the CPU.
        seed: the seed of the run.
        epochs: int64 [B].
        indices: int64 [B], stable positions of the samples in their source.
        flip: whether images may be mirrored.

    Returns:
        Images of the same shape in [0, 1]; for ``none`` the very same tensor.

    Raises:
        LimbeckError: there is no such view.
    """
    kind = view if view == "none" else check(view)
    if kind == "none":
        return images
    function, count = _VIEWS[kind]
    name, _, area = view.partition(":")[0].partition("@")
    if area:
        low, high = _area(name, area, view)
        function = functools.partial(function, low=low, high=high)
    draws = uniforms(derive(seed, "view", view), epochs.numpy(), indices.numpy(), draws=count)
    piece = max(1, PIECE // max(1, images[:1].numel()))
    views = torch.from_numpy(np.empty(images.shape, np.float32))  # NumPy asks for large pages, torch does not
    for start in range(0, len(images), piece):
        rows = slice(start, start + piece)
        views[rows] = function(images[rows], draws[rows], flip)
    return views
