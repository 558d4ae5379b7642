"""Scenes composed of scikit-learn's handwritten digits: images with boxes that need no data."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.data.digits import digits
from limbeck.data.random import derive, uniforms
from limbeck.errors import LimbeckError

_ENLARGED = (2.0, 3.5)  # of 8 x 8 pixels
_ATTEMPTS = 20
_NOISE = 0.15

Part = tuple[Tensor, list[Tensor], list[Tensor]]


def digit_scenes(counts: Mapping[str, int], size: int, most: int) -> dict[str, Part]:
    """Digits of random size and place on noise, boxes tight around their ink; the same in every run.

    Args:
        counts: number of images of each part; ``test`` shows digits that no other part shows.
        size: side of the square images in pixels.
        most: an image shows from none up to this many digits, drawn uniformly, as far as there is room.

    Returns:
        For each part images uint8 [N, 1, size, size], a list of boxes float32 [M, 4] and one of labels int64 [M].

    Raises:
        LimbeckError: an option out of range.
    """
    if size < 32:
        raise LimbeckError(f"size is {size}; digit_boxes needs at least 32 pixels, for digits of up to 28")
    if most < 1:
        raise LimbeckError(f"most is {most}; images must be allowed at least one digit")
    for name, count in counts.items():
        if count < 1:
            raise LimbeckError(f"{name} is {count}; there must be at least one image")
    source = digits()
    parts: dict[str, Part] = {}
    for name, count in counts.items():
        samples = source.test if name == "test" else source.train
        glyphs = samples.fetch(torch.arange(len(samples)))["image"]
        scenes = [_scene(glyphs, samples.labels, derive(0, "digit_boxes", name, at), size, most) for at in range(count)]
        images, boxes, labels = zip(*scenes, strict=True)
        parts[name] = torch.stack(images), list(boxes), list(labels)
    return parts


def _scene(glyphs: Tensor, classes: Tensor, key: int, size: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    pixels = uniforms(derive(key, "noise"), np.arange(size * size), draws=1).reshape(size, size) * _NOISE
    canvas = torch.from_numpy(pixels).float()
    draws = uniforms(derive(key, "digits"), np.arange(1 + most * _ATTEMPTS), draws=4)
    boxes: list[list[float]] = []
    labels: list[int] = []
    for draw in draws[1:]:
        if len(boxes) == int(draws[0, 0] * (most + 1)):
            break
        chosen = int(draw[0] * len(glyphs))
        side = round(8 * (_ENLARGED[0] + (_ENLARGED[1] - _ENLARGED[0]) * draw[1]))
        left, top = int(draw[2] * (size - side + 1)), int(draw[3] * (size - side + 1))
        large = F.interpolate(glyphs[chosen][None], (side, side), mode="bilinear", align_corners=False)[0, 0]
        ink = large > 0.2
        rows, columns = torch.nonzero(ink.any(1))[:, 0], torch.nonzero(ink.any(0))[:, 0]
        box = [left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1]
        if any(_touch(box, other) for other in boxes):
            continue
        place = canvas[top : top + side, left : left + side]
        place.copy_(torch.maximum(place, large))
        boxes.append([float(value) for value in box])
        labels.append(int(classes[chosen]))
    image = (canvas * 255).round().to(torch.uint8)[None]
    return image, torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64)


def _touch(box: list[int], other: list[float]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
