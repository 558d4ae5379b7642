"""The augmentation of SimCLR (arXiv 2002.05709, appendix A), on whole batches.

A random part of the image, resized and mirrored; with probability 0.8 its colours are jittered (brightness, contrast
and saturation by a factor within 1 -+ 0.8 s, the hue by up to 0.2 s of a turn, in random order); with 0.2 it becomes
grey; with 0.5 it is blurred. A grey image has neither saturation nor hue.

As torchvision and most ports have it: factors of contrast are about the mean of the grey image, where the released
code takes the mean of each channel; and the blur sees a reflected border, where the released code sees zeros. Every
operation treats each image by itself, with draws that are handed in.
"""

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from limbeck.data import crops
from limbeck.data.rand_augment import luminance, mean_luminance

Draws = NDArray[np.float64]

ORDERS = np.array(list(itertools.permutations(range(4))))
"""In which order brightness, contrast, saturation and hue are changed."""

DRAWS = crops.DRAWS + 10


def simclr(
    images: Tensor,
    draws: Draws,
    flip: bool,
    low: float = 0.08,
    high: float = 1.0,
    *,
    strength: float = 1.0,
    blur: bool = True,
) -> Tensor:
    """One view of each image.

    Args:
        images: float [B, 1 or 3, H, W] in [0, 1].
        draws: uniform in [0, 1), [B, DRAWS].
        flip: whether images may be mirrored.
        low: smallest share of the area that is seen.
        high: largest share of the area.
        strength: s, of the jitter (1 on ImageNet, 0.5 on CIFAR-10).
        blur: whether some are blurred (not on CIFAR-10), by a kernel of a tenth of the height.
    """
    height, width = images.shape[-2:]
    views = crops.resized_parts(images, crops.draw_boxes(height, width, draws[:, : crops.DRAWS], low, high))
    rest = draws[:, crops.DRAWS :]
    mirrored, jittered, greyed, blurred = (
        torch.from_numpy(rest[:, column] < chance)[:, None, None, None]
        for column, chance in enumerate((0.5 if flip else 0.0, 0.8, 0.2, 0.5))
    )
    views = torch.where(mirrored, views.flip(-1), views)
    views = torch.where(jittered, _jitter(views, rest[:, 4:9], strength), views)
    if images.shape[1] == 3:
        views = torch.where(greyed, luminance(views), views)
    if blur:
        views = torch.where(blurred, _blur(views, rest[:, 9]), views)
    return views.clamp_(0, 1)


def _jitter(images: Tensor, draws: Draws, strength: float) -> Tensor:
    """Brightness, contrast, saturation and hue in the order that the last draw says."""
    width = 0.8 * strength
    factors = torch.from_numpy(
        (max(0.0, 1 - width) + (1 + width - max(0.0, 1 - width)) * draws[:, :3]).astype(np.float32)
    )
    turns = torch.from_numpy((0.2 * strength * (2 * draws[:, 3] - 1)).astype(np.float32))
    order = torch.from_numpy(ORDERS[(draws[:, 4] * len(ORDERS)).astype(np.int64)])
    operations = [(_brightness, factors[:, 0]), (_contrast, factors[:, 1])]
    if images.shape[1] == 3:
        operations += [(_saturation, factors[:, 2]), (_hue, turns)]
    found = images.clone()
    for step in range(4):
        for kind, (operation, amount) in enumerate(operations):
            rows = torch.nonzero(order[:, step] == kind)[:, 0]
            if len(rows):
                found[rows] = operation(found[rows], amount[rows])
    return found


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """``other`` at factor 0, ``images`` at factor 1, and beyond."""
    return (other + factor[:, None, None, None] * (images - other)).clamp_(0, 1)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images), factor)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, mean_luminance(images), factor)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, luminance(images), factor)


def _hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by a share of the circle; value and saturation stay (the hexagon of HSV)."""
    value = images.amax(1)
    chroma = value - images.amin(1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    red, green, blue = images.unbind(1)
    sixths = torch.where(
        value == red,
        ((green - blue) / safe) % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = sixths + 6 * factor[:, None, None]
    channels = [value - chroma * (2 - ((hue - place) % 6 - 3).abs()).clamp(0, 1) for place in (0, 2, 4)]
    return torch.stack(channels, dim=1).clamp_(0, 1)


def _blur(images: Tensor, draws: Draws) -> Tensor:
    """Smoothed by a Gaussian whose standard deviation is between 0.1 and 2 pixels."""
    height, width = images.shape[-2:]
    radius = min(height // 10 // 2, height - 1, width - 1)
    if radius == 0:
        return images
    sigma = 0.1 + 1.9 * draws
    weights = np.exp(-np.square(np.arange(-radius, radius + 1)) / (2 * np.square(sigma)[:, None]))
    kernel = torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32))[:, :, None, None, None]
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    rows = torch.zeros_like(padded[..., :height, :])
    for tap in range(2 * radius + 1):
        rows += kernel[:, tap] * padded[..., tap : tap + height, :]
    found = torch.zeros_like(images)
    for tap in range(2 * radius + 1):
        found += kernel[:, tap] * rows[..., tap : tap + width]
    return found
