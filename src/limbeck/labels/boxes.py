"""Boxes as labels: what a detector says, and which of it is trusted."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError


class Detections(NamedTuple):
    """Boxes in images, padded to the same number an image.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels, [*batch, boxes, 4].
        labels: class indices [*batch, boxes], -1 where there is no box.
        scores: confidence in that class [*batch, boxes].
    """

    boxes: Float[Tensor, "*batch boxes 4"]
    labels: Int[Tensor, "*batch boxes"]
    scores: Float[Tensor, "*batch boxes"]

    def keep(self, chosen: Bool[Tensor, "*batch boxes"]) -> "Detections":
        """The same with only the chosen ones of its boxes."""
        return self._replace(labels=self.labels.masked_fill(~chosen, -1))


def confident_boxes(detections: Detections, threshold: float | int) -> Detections:
    """Keep boxes whose score is above the threshold (Soft Teacher, arXiv 2106.09018: 0.9 for classification)."""
    return detections.keep(detections.scores > threshold)


def jitter_boxes(
    boxes: Float[Tensor, "*boxes 4"],
    times: int,
    scale: float | int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "times *boxes 4"]:
    """Copies of boxes whose every coordinate is moved by ``scale`` times the box's width or height, normally.

    Source: Soft Teacher (arXiv 2106.09018), box jittering, as in the released code: b + eps, eps ~ N(0, (scale size)^2)
    with size = (w, h, w, h), w and h at least one pixel. The paper draws eps uniformly from +-6 % (memory).

    Args:
        boxes: x1, y1, x2, y2, float32 or float64.
        times: number of copies, T >= 2, as their spread is wanted.
        scale: standard deviation in parts of the side.
        generator: of the draws; torch's global one by default.

    Raises:
        LimbeckError: fewer than two copies, or a negative scale.
    """
    if times < 2:
        raise LimbeckError(f"jitter_times is {times}; a standard deviation needs at least 2")
    if scale < 0:
        raise LimbeckError(f"jitter_scale is {scale}; it must be at least 0")
    noise = torch.randn((times, *boxes.shape), dtype=boxes.dtype, device=boxes.device, generator=generator)
    return boxes + noise * scale * _sides(boxes)


def box_jitter_uncertainty(refined: Float[Tensor, "times *boxes 4"]) -> Float[Tensor, "*boxes"]:
    """How far refined copies of a box lie apart: the mean over its coordinates of standard deviation over side.

    Source: Soft Teacher (arXiv 2106.09018), box regression variance, as in the released code: the unbiased standard
    deviation of x1 and x2 over the copies divided by the width of the mean box, that of y1 and y2 by its height
    (sides of at least one pixel), averaged. The paper divides all four by half the sum of width and height (memory),
    which is the same for squares.

    Args:
        refined: the boxes that a regressor makes of the jittered copies, see :func:`jitter_boxes`.
    """
    mean = refined.mean(0)
    # Not torch's std, which warns where there are no boxes.
    deviation = ((refined - mean).square().sum(0) / (len(refined) - 1)).sqrt()
    return (deviation / _sides(mean)).mean(-1)


def _sides(boxes: Float[Tensor, "*boxes 4"]) -> Float[Tensor, "*boxes 4"]:
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp_min(1.0)
    return torch.cat([sides, sides], -1)
