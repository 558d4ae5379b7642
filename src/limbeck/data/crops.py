"""Random parts of images, resized: which part, and the resizing of a whole batch of parts at once."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ATTEMPTS = 10
DRAWS = 4 * ATTEMPTS
"""Uniform draws that :func:`draw_boxes` needs for an image."""


class Boxes(NamedTuple):
    """A part of each image, in whole pixels, int64 [B] each."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]


def draw_boxes(height: int, width: int, draws: NDArray[np.float64], low: float, high: float) -> Boxes:
    """A random part of each image (arXiv 1409.4842): its share of the area, its aspect from 3/4 to 4/3, its place.

    Where none of ten attempts fits into a very oblong image, it is a square as large as fits.

    Args:
        height: of the images, in pixels.
        width: of the images, in pixels.
        draws: uniform in [0, 1), [B, DRAWS].
        low: smallest share of the area.
        high: largest share of the area.
    """
    attempts = draws.reshape(-1, ATTEMPTS, 4)
    area = height * width * (low + (high - low) * attempts[..., 0])
    aspect = (3 / 4) * (16 / 9) ** attempts[..., 1]  # log-uniform between 3/4 and 4/3
    tall = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    wide = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    fits = (tall >= 1) & (wide >= 1) & (tall <= height) & (wide <= width)
    rows, first = np.arange(len(attempts)), fits.argmax(1)
    fitting = fits[rows, first]
    h, w = (np.where(fitting, size[rows, first], min(height, width)) for size in (tall, wide))
    top = (attempts[rows, first, 2] * (height - h + 1)).astype(np.int64)
    left = (attempts[rows, first, 3] * (width - w + 1)).astype(np.int64)
    return Boxes(top, left, h, w)


def resized_parts(images: Tensor, boxes: Boxes) -> Tensor:
    """The parts, each resized to the size of the whole (bilinear; a part is never larger, so nothing is averaged).

    Args:
        images: float [B, C, H, W].
        boxes: a part of each.
    """
    _, channels, height, width = images.shape
    above, below, down = _between(boxes.top, boxes.height, height)
    first, last = (images.gather(2, at[:, None, :, None].expand(-1, channels, -1, width)) for at in (above, below))
    rows = torch.lerp(first, last, down[:, None, :, None])
    before, behind, right = _between(boxes.left, boxes.width, width)
    first, last = (rows.gather(3, at[:, None, None, :].expand(-1, channels, height, -1)) for at in (before, behind))
    return torch.lerp(first, last, right[:, None, None, :])


def _between(start: NDArray[np.int64], length: NDArray[np.int64], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each of ``size`` target pixels the two source pixels around it, and how far it is on the way, [B, size]."""
    place = np.clip((np.arange(size) + 0.5) * (length / size)[:, None] - 0.5, 0, length[:, None] - 1.0)
    low = place.astype(np.int64)
    high = np.minimum(low + 1, length[:, None] - 1)
    share = (place - low).astype(np.float32)
    return torch.from_numpy(start[:, None] + low), torch.from_numpy(start[:, None] + high), torch.from_numpy(share)
