"""RandAugment (arXiv 1909.13719) and Cutout (arXiv 1708.04552) as FixMatch uses them, on whole batches.

The operations and their ranges are those of FixMatch, arXiv 2001.07685, table 12, as TorchSSL and the PyTorch port
of FixMatch have them too. Both operations are always applied, as in TorchSSL, where FixMatch's own code skips each with
probability 0.5; that code also draws brightness, colour, contrast and sharpness from 0.28 to 1.72 and shifts by 1 to 9
pixels, which is not what the paper's table says. Cutout has the fixed size of FixMatch's code.

Every operation treats each image by itself, with draws that are handed in. Sums over pixels are sums of integers, which
come out the same in any order: so the other images of a batch cannot change a result in its last bits.
"""

import math
from collections.abc import Callable, Sequence

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
    return (images - other).mul_(factor).add_(other).clamp_(0, 1)


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


def _keep(images: Tensor, changed: Tensor, which: Tensor) -> Tensor:
    """``changed`` with the channels that ``which`` [B, C] says as they are in ``images``."""
    if which.any():
        changed[which] = images[which]
    return changed


def _autocontrast(images: Tensor, draw: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low).div_((high - low).clamp_min_(1e-6))
    return _keep(images, stretched, (high == low)[:, :, 0, 0])


def _brightness(images: Tensor, draw: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images), draw)


def _color(images: Tensor, draw: Tensor) -> Tensor:
    return _blend(images, luminance(images), draw)


def _contrast(images: Tensor, draw: Tensor) -> Tensor:
    return _blend(images, mean_luminance(images), draw)


def _equalize(images: Tensor, draw: Tensor) -> Tensor:
    """Each channel's 256 levels spread evenly by their cumulative histogram."""
    count, channels, height, width = images.shape
    levels = (images * 255).round_().to(torch.int32).flatten(2)
    cells = levels.add_(256 * torch.arange(count * channels, dtype=torch.int32).view(count, channels, 1)).flatten()
    histogram = torch.bincount(cells, minlength=256 * count * channels).view(count, channels, 256)
    below = histogram.cumsum(2)
    first = (images.amin((2, 3)) * 255).round_().to(torch.int64)[..., None]
    lowest = histogram.gather(2, first)
    table = (below - lowest).double() / (height * width - lowest).clamp_min(1)
    spread = table.clamp_min_(0).float().flatten().index_select(0, cells).view_as(images)
    return _keep(images, spread, (lowest == height * width)[..., 0])  # a channel of one level stays as it is


def _identity(images: Tensor, draw: Tensor) -> Tensor:
    return images


def _posterize(images: Tensor, draw: Tensor) -> Tensor:
    step = _column(2.0 ** (4 - torch.floor(5 * draw)))  # 4 to 8 bits are kept
    return (images * 255).round_().div_(step).floor_().mul_(step).div_(255)


def _sharpness(images: Tensor, draw: Tensor) -> Tensor:
    """Towards the image smoothed by 3 x 3 with a centre of 5, except for its border."""
    height, width = images.shape[-2:]
    if height < 3 or width < 3:
        return images
    total = 4 * images[..., 1:-1, 1:-1]
    for down in range(3):
        for right in range(3):
            total += images[..., down : height - 2 + down, right : width - 2 + right]
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = total.div_(13)
    return _blend(images, smooth, draw)


def _solarize(images: Tensor, draw: Tensor) -> Tensor:
    bright = torch.ge(images, _column(draw), out=torch.empty_like(images))
    return bright.sub_(images).abs_()  # |1 - x| or |0 - x|: a tenth of the time that torch.where takes


def _affine(images: Tensor, rotate: Tensor, shear: tuple[Tensor, Tensor], move: tuple[Tensor, Tensor]) -> Tensor:
    """Nearest-neighbour warp; ``rotate`` in radians about the centre, ``move`` in parts of the size.

    Shears leave the top and the left edge where they are, as Pillow's affine transform and all released code do.
    """
    height, width = images.shape[-2:]
    ratio = height / width
    cos, sin = rotate.cos(), rotate.sin()
    # In coordinates from -1 to 1 a pixel is 2 / size long, hence the ratio between the axes.
    right = _plane(cos, (shear[0] - sin) * ratio, 2 * move[0] + shear[0] * ratio, height, width)
    down = _plane((shear[1] + sin) / ratio, cos, 2 * move[1] + shear[1] / ratio, height, width)
    grid = torch.stack([right, down], 1).permute(0, 2, 3, 1)
    return F.grid_sample(images - _GREY, grid, mode="nearest", align_corners=False).add_(_GREY)


def _plane(across: Tensor, along: Tensor, constant: Tensor, height: int, width: int) -> Tensor:
    """``across x + along y + constant`` at the centres of the pixels, from -1 to 1 [B, H, W].

    What ``F.affine_grid`` gives, in a twentieth of its time.
    """
    x, y = (torch.linspace(-1, 1, size).mul_(size - 1).div_(size) for size in (width, height))
    values = (across[:, None] * x)[:, None, :] + (along[:, None] * y)[:, :, None]
    return values.add_(constant[:, None, None])


def _warp(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    def operation(images: Tensor, draw: Tensor) -> Tensor:
        zero, amount = torch.zeros_like(draw), _between(draw, -0.3, 0.3)
        rotate = _between(draw, -math.pi / 6, math.pi / 6) if kind == "rotate" else zero
        shear = (amount if kind == "shear_x" else zero, amount if kind == "shear_y" else zero)
        move = (amount if kind == "translate_x" else zero, amount if kind == "translate_y" else zero)
        return _affine(images, rotate, shear, move)

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


def operate(images: Tensor, names: Sequence[str], draws: Draws, strength: Draws) -> None:
    """One operation on each image, in place.

    Args:
        images: float [B, 1 or 3, H, W] in [0, 1].
        names: of :data:`OPERATIONS`, those that are drawn from.
        draws: [B] in [0, 1), which of them.
        strength: [B] in [0, 1).
    """
    chosen = (draws * len(names)).astype(np.int64)
    given = torch.from_numpy(strength).to(images.dtype)
    for number in np.unique(chosen):
        rows = np.flatnonzero(chosen == number)
        mine = torch.from_numpy(rows)
        # NumPy writes an image at a time, torch number by number.
        images.numpy()[rows] = OPERATIONS[names[number]](images.index_select(0, mine), given[mine]).numpy()


def rand_augment(images: Tensor, draws: Draws) -> Tensor:
    """Two operations on each image, drawn with replacement, each of a random strength.

    Args:
        images: float [B, 1 or 3, H, W] in [0, 1].
        draws: [B, DRAWS] in [0, 1).

    Returns:
        Images of the same shape in [0, 1].
    """
    found = images.clone()
    for turn in range(_OPERATIONS_PER_IMAGE):
        operate(found, list(OPERATIONS), draws[:, 2 * turn], draws[:, 2 * turn + 1])
    return found


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
    warps = np.isin(names, _WARPS)
    found = images.clone()
    for turn in range(MILD):
        which, side = draws[:, 2 * turn], draws[:, 2 * turn + 1]
        either = 0.5 + np.where(side < 0.5, -1.0, 1.0) * magnitude / 2
        warped = warps[(which * len(names)).astype(np.int64)]
        operate(found, names, which, np.where(warped, either, 1 - magnitude))
    return found


def cutout(images: Tensor, draws: Draws) -> Tensor:
    """A grey square of half the image's size around a random pixel, as far as it lies inside the image.

    Args:
        images: float [B, C, H, W] in [0, 1].
        draws: [B, 2] in [0, 1), the centre.
    """
    height, width = images.shape[-2:]
    top, left = ((draws[:, axis] * size).astype(np.int64) - size // 4 for axis, size in enumerate((height, width)))
    found = images.clone()
    for image, y, x in zip(found.numpy(), top.tolist(), left.tolist(), strict=True):
        image[:, max(0, y) : y + max(1, height // 2), max(0, x) : x + max(1, width // 2)] = _GREY
    return found
