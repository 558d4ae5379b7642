"""RandAugment (arXiv 1909.13719) and Cutout (arXiv 1708.04552) as FixMatch uses them, on whole batches.

The operations and their ranges are those of FixMatch, arXiv 2001.07685, table 12, as TorchSSL and the PyTorch port
of FixMatch have them too. Both operations are always applied, as in TorchSSL, where FixMatch's own code skips each with
probability 0.5; that code also draws brightness, colour, contrast and sharpness from 0.28 to 1.72 and shifts by 1 to 9
pixels, which is not what the paper's table says. Cutout has the fixed size of FixMatch's code.

Every operation treats each image by itself, with draws that are handed in. Sums over pixels are sums of integers, which
come out the same in any order: so the other images of a batch cannot change a result in its last bits.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Draws = NDArray[np.float64]

_OPERATIONS_PER_IMAGE = 2
DRAWS = 2 * _OPERATIONS_PER_IMAGE
"""Uniform draws that :func:`rand_augment` needs for an image: which operation, and how strong, in turn."""

_GREY = 0.5  # what is uncovered by a shift or cut out; FixMatch fills with mid-grey


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _between(draw: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draw


def _blend(images: Tensor, other: Tensor, draw: Tensor) -> Tensor:
    """``other`` at factor 0, ``images`` at factor 1; factors from 0.05 to 0.95."""
    factor = _column(_between(draw, 0.05, 0.95))
    return (other + factor * (images - other)).clamp(0, 1)


def luminance(images: Tensor) -> Tensor:
    """The grey image [B, 1, H, W] of a grey or RGB one."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def mean_luminance(images: Tensor) -> Tensor:
    """The mean of the grey image, rounded to 256 levels first, [B, 1, 1, 1]."""
    levels = (luminance(images) * 255).round().to(torch.int64)
    mean = levels.sum((1, 2, 3)).double() / (255 * levels[0].numel())
    return _column(mean.float())


def _autocontrast(images: Tensor, draw: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) / (high - low).clamp_min(1e-6)
    return torch.where(high > low, stretched, images)


def _brightness(images: Tensor, draw: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images), draw)


def _color(images: Tensor, draw: Tensor) -> Tensor:
    return _blend(images, luminance(images), draw)


def _contrast(images: Tensor, draw: Tensor) -> Tensor:
    return _blend(images, mean_luminance(images), draw)


def _equalize(images: Tensor, draw: Tensor) -> Tensor:
    """Each channel's 256 levels spread evenly by their cumulative histogram."""
    count, channels, height, width = images.shape
    levels = (images * 255).round().to(torch.int64).flatten(2)
    histogram = torch.zeros(count, channels, 256, dtype=torch.int64)
    histogram.scatter_add_(2, levels, torch.ones_like(levels))
    below = histogram.cumsum(2)
    lowest = histogram.gather(2, levels.amin(2, keepdim=True))
    table = (below - lowest).double() / (height * width - lowest).clamp_min(1)
    spread = table.clamp_min(0).float().gather(2, levels).view_as(images)
    flat = lowest[..., None] == height * width  # a channel of one level stays as it is
    return torch.where(flat, images, spread)


def _identity(images: Tensor, draw: Tensor) -> Tensor:
    return images


def _posterize(images: Tensor, draw: Tensor) -> Tensor:
    step = _column(2.0 ** (4 - torch.floor(5 * draw)))  # 4 to 8 bits are kept
    return torch.floor((images * 255).round() / step) * step / 255


def _sharpness(images: Tensor, draw: Tensor) -> Tensor:
    """Towards the image smoothed by 3 x 3 with a centre of 5, except for its border."""
    height, width = images.shape[-2:]
    if height < 3 or width < 3:
        return images
    total = 4 * images[..., 1:-1, 1:-1]
    for down in range(3):
        for right in range(3):
            total = total + images[..., down : height - 2 + down, right : width - 2 + right]
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = total / 13
    return _blend(images, smooth, draw)


def _solarize(images: Tensor, draw: Tensor) -> Tensor:
    return torch.where(images >= _column(draw), 1 - images, images)


def _affine(images: Tensor, rotate: Tensor, shear: tuple[Tensor, Tensor], move: tuple[Tensor, Tensor]) -> Tensor:
    """Nearest-neighbour warp; ``rotate`` in radians about the centre, ``move`` in parts of the size.

    Shears leave the top and the left edge where they are, as Pillow's affine transform and all released code do.
    """
    height, width = images.shape[-2:]
    ratio = height / width
    cos, sin = rotate.cos(), rotate.sin()
    # In coordinates from -1 to 1 a pixel is 2 / size long, hence the ratio between the axes.
    top = torch.stack([cos, (shear[0] - sin) * ratio, 2 * move[0] + shear[0] * ratio], 1)
    bottom = torch.stack([(shear[1] + sin) / ratio, cos, 2 * move[1] + shear[1] / ratio], 1)
    grid = F.affine_grid(torch.stack([top, bottom], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images - _GREY, grid, mode="nearest", align_corners=False) + _GREY


def _warp(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    def operation(images: Tensor, draw: Tensor) -> Tensor:
        zero, amount = torch.zeros_like(draw), _between(draw, -0.3, 0.3)
        rotate = _between(draw, -math.pi / 6, math.pi / 6) if kind == "rotate" else zero
        shear = (amount if kind == "shear_x" else zero, amount if kind == "shear_y" else zero)
        move = (amount if kind == "translate_x" else zero, amount if kind == "translate_y" else zero)
        return _affine(images, rotate, shear, move).clamp(0, 1)

    return operation


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": _autocontrast,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "identity": _identity,
    "posterize": _posterize,
    "rotate": _warp("rotate"),
    "sharpness": _sharpness,
    "shear_x": _warp("shear_x"),
    "shear_y": _warp("shear_y"),
    "solarize": _solarize,
    "translate_x": _warp("translate_x"),
    "translate_y": _warp("translate_y"),
}
"""Name -> (images float [B, 1 or 3, H, W] in [0, 1], strength [B] in [0, 1)) -> images."""


_WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
MILD = 10
"""Operations of :func:`mild_augment`."""


def rand_augment(images: Tensor, draws: Draws) -> Tensor:
    """Two operations on each image, drawn with replacement, each of a random strength.

    Args:
        images: float [B, 1 or 3, H, W] in [0, 1].
        draws: [B, DRAWS] in [0, 1).

    Returns:
        Images of the same shape in [0, 1].
    """
    names = list(OPERATIONS)
    for turn in range(_OPERATIONS_PER_IMAGE):
        chosen = (draws[:, 2 * turn] * len(names)).astype(np.int64)
        strength = torch.from_numpy(draws[:, 2 * turn + 1]).to(images.dtype)
        changed = torch.empty_like(images)
        for number in np.unique(chosen):
            mine = torch.from_numpy(np.flatnonzero(chosen == number))
            changed[mine] = OPERATIONS[names[number]](images[mine], strength[mine])
        images = changed
    return images


def mild_augment(images: Tensor, draws: Draws) -> Tensor:
    """``MILD`` operations on each image, drawn with replacement, each a tenth of its range away from identity.

    RandAugment as N = 10 operations of magnitude M = 1 of 10, as FedLabel uses it (arXiv 2307.08809, section 5). Warps
    go either way; the others at the end of their range that changes least.

    Args:
        images: float [B, 1 or 3, H, W] in [0, 1].
        draws: [B, 2 * MILD] in [0, 1).
    """
    magnitude = 0.1
    names = list(OPERATIONS)
    for turn in range(MILD):
        chosen = (draws[:, 2 * turn] * len(names)).astype(np.int64)
        sign = np.where(draws[:, 2 * turn + 1] < 0.5, -1.0, 1.0)
        changed = torch.empty_like(images)
        for number in np.unique(chosen):
            mine = np.flatnonzero(chosen == number)
            warp = names[number] in _WARPS
            strength = 0.5 + sign[mine] * magnitude / 2 if warp else np.full(len(mine), 1 - magnitude)
            changed[mine] = OPERATIONS[names[number]](images[mine], torch.from_numpy(strength).to(images.dtype))
        images = changed
    return images


def cutout(images: Tensor, draws: Draws) -> Tensor:
    """A grey square of half the image's size around a random pixel, as far as it lies inside the image.

    Args:
        images: float [B, C, H, W] in [0, 1].
        draws: [B, 2] in [0, 1), the centre.
    """

    def covered(size: int, draw: Draws) -> Tensor:
        start = (draw * size).astype(np.int64)[:, None] - size // 4
        places = np.arange(size)
        return torch.from_numpy((places >= start) & (places < start + max(1, size // 2)))

    height, width = images.shape[-2:]
    hole = covered(height, draws[:, 0])[:, None, :, None] & covered(width, draws[:, 1])[:, None, None, :]
    return images.masked_fill(hole, _GREY)
