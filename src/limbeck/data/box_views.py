"""Views of images with boxes: every view records the 3x3 matrix that maps the image to it, so boxes can follow.

Coordinates are pixels from the top left corner, x to the right, y down; an image of width W spans x from 0 to W.

- ``none``: the image itself.
- ``weak``: made smaller (where the data asks for it) and mirrored (where allowed).
- ``labeled``: weak, then one colour operation.
- ``strong``: weak, then one colour and one geometric operation in random order, then one to five squares erased.

The operations are those of the released configuration of Soft Teacher (arXiv 2106.09018), read there: nine colour
operations; translation by up to a tenth of the image along one axis, rotation by up to 30 degrees, or shear by up to
30 degrees along both axes; squares of up to a fifth of the shorter side. How strong a colour operation is follows
FixMatch's ranges (arXiv 2001.07685, table 12), which is a choice.

A second, independent reading of the same kind has a number after its name: ``strong:2``. What is random about a view
depends on (seed, epoch, index, full name of the view) only.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from limbeck.data.rand_augment import operate
from limbeck.data.random import derive, uniforms
from limbeck.errors import LimbeckError, nearest

Draws = NDArray[np.float64]  # [B, number of draws], uniform in [0, 1)

COLOUR = (
    "identity",
    "autocontrast",
    "equalize",
    "solarize",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "posterize",
)
VIEWS = ("none", "weak", "labeled", "strong")
_GREY = 0.5  # what an image is continued with outside its border, and what is erased
_SQUARES = 5
_DRAWS = 2 + 2 + 3 + 1 + 1 + 3 * _SQUARES  # scale and mirror, colour, geometry, order, number of squares, squares


class BoxView(NamedTuple):
    """A view of a batch of images.

    Attributes:
        image: float [B, C, H, W] in [0, 1].
        matrix: float32 [B, 3, 3], from the coordinates of the image to those of the view.
    """

    image: Tensor
    matrix: Tensor


def check_view(view: str) -> str:
    """The kind of a view: its name without the number.

    Raises:
        LimbeckError: there is no such view.
    """
    kind, _, number = view.partition(":")
    if kind not in VIEWS or (":" in view and not number.isdigit()):
        raise LimbeckError(
            f"there is no view {view!r} of images with boxes; known: {', '.join(VIEWS)}.{nearest(kind, VIEWS)}"
        )
    return kind


def apply(
    view: str, images: Tensor, *, seed: int, epochs: Tensor, indices: Tensor, flip: bool, min_scale: float = 1.0
) -> BoxView:
    """One view of each image.

    Args:
        view: a name, see the module's documentation.
        images: float [B, 1 or 3, H, W] in [0, 1], on the CPU.
        seed: the seed of the run.
        epochs: int64 [B].
        indices: int64 [B], stable positions of the samples in their source.
        flip: whether images may be mirrored.
        min_scale: images are made smaller by a factor drawn uniformly from [min_scale, 1]; the rest is grey.

    Raises:
        LimbeckError: there is no such view.
    """
    kind = check_view(view)
    count, _, height, width = images.shape
    identity = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    if kind == "none":
        return BoxView(images, identity.float())
    draws = uniforms(derive(seed, "view", view), epochs.numpy(), indices.numpy(), draws=_DRAWS)
    resized = _scale(draws[:, 0], min_scale) @ _mirror(draws[:, 1], width, flip)
    if kind == "weak":
        return BoxView(warp(images, resized), resized.float())
    if kind == "labeled":
        return BoxView(_colour(warp(images, resized), draws[:, 2:4]), resized.float())
    matrix = _geometric(draws[:, 4:7], height, width) @ resized
    colour_first = torch.from_numpy(draws[:, 7] < 0.5)[:, None, None, None]
    moved = warp(torch.where(colour_first, _colour(images, draws[:, 2:4]), images), matrix)
    image = torch.where(colour_first, moved, _colour(moved, draws[:, 2:4]))
    return BoxView(_erase(image, draws[:, 8:]), matrix.float())


def transform_boxes(matrix: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes as the matrix moves them: the axis-aligned hull of their four corners, clipped to the image.

    Args:
        matrix: float [*batch, 3, 3], homogeneous, from the coordinates of the boxes to those wanted.
        boxes: float [*batch, M, 4], each x1, y1, x2, y2.
        size: height and width that the boxes are clipped to.

    Returns:
        Boxes of the same shape; one that lies outside has no area.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    corners = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], -1).unflatten(-1, (4, 2))
    homogeneous = torch.cat([corners, torch.ones_like(corners[..., :1])], -1)
    # Elementwise, not a matrix product, which autocast would turn into bfloat16.
    moved = (matrix[..., None, None, :, :] * homogeneous[..., None, :]).sum(-1)
    points = moved[..., :2] / moved[..., 2:]
    limit = boxes.new_tensor([size[1], size[0]])
    low, high = points.amin(-2), points.amax(-2)
    return torch.cat([low.clamp_min(0).minimum(limit), high.clamp_min(0).minimum(limit)], -1)


def move_boxes(
    matrix: Tensor, boxes: Tensor, labels: Tensor, size: tuple[int, int], least: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Boxes and labels after :func:`transform_boxes`; a box no wider or higher than ``least`` pixels has label -1."""
    moved = transform_boxes(matrix, boxes, size)
    return moved, labels.masked_fill((moved[..., 2:] - moved[..., :2]).amin(-1) <= least, -1)


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Images moved by matrices, bilinear, continued in grey.

    Args:
        images: float [B, C, H, W] in [0, 1].
        matrix: float64 [B, 3, 3], from the coordinates of the image to those of the result.
    """
    height, width = images.shape[-2:]
    # From pixels to the coordinates from -1 to 1 in which grid_sample looks things up.
    unit = torch.tensor([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]], dtype=torch.float64)
    back = unit @ torch.linalg.inv(matrix) @ torch.linalg.inv(unit)
    grid = F.affine_grid(back[:, :2].to(images.dtype), list(images.shape), align_corners=False)
    moved = F.grid_sample(images - _GREY, grid, mode="bilinear", align_corners=False) + _GREY
    return moved.clamp(0, 1)


def _matrices(count: int) -> Tensor:
    return torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)


def _scale(draw: Draws, least: float) -> Tensor:
    matrices = _matrices(len(draw))
    matrices[:, 0, 0] = matrices[:, 1, 1] = torch.from_numpy(least + (1 - least) * draw)
    return matrices


def _mirror(draw: Draws, width: int, flip: bool) -> Tensor:
    matrices = _matrices(len(draw))
    if flip:
        chosen = torch.from_numpy(draw < 0.5)
        matrices[chosen, 0, 0], matrices[chosen, 0, 2] = -1.0, float(width)
    return matrices


def _colour(images: Tensor, draws: Draws) -> Tensor:
    changed = images.clone()
    operate(changed, COLOUR, draws[:, 0], draws[:, 1])
    return changed


def _geometric(draws: Draws, height: int, width: int) -> Tensor:
    """Translation along x or y, rotation, or shear along both, about the centre; [B, 3, 3]."""
    kind = (draws[:, 0] * 4).astype(np.int64)
    amounts = torch.from_numpy(2 * draws[:, 1:] - 1)
    matrices = _matrices(len(draws))
    for at in range(len(draws)):
        first, second = amounts[at].tolist()
        if kind[at] == 0:
            matrices[at, 0, 2] = 0.1 * width * first
        elif kind[at] == 1:
            matrices[at, 1, 2] = 0.1 * height * first
        elif kind[at] == 2:
            angle = math.pi / 6 * first
            matrices[at, 0, 0] = matrices[at, 1, 1] = math.cos(angle)
            matrices[at, 0, 1], matrices[at, 1, 0] = -math.sin(angle), math.sin(angle)
        else:
            matrices[at, 0, 1], matrices[at, 1, 0] = (math.tan(math.pi / 6 * amount) for amount in (first, second))
    centre = _matrices(1)
    centre[0, 0, 2], centre[0, 1, 2] = width / 2, height / 2
    return centre @ matrices @ torch.linalg.inv(centre)


def _erase(images: Tensor, draws: Draws) -> Tensor:
    height, width = images.shape[-2:]
    numbers = 1 + (draws[:, 0] * _SQUARES).astype(np.int64)
    squares = draws[:, 1:].reshape(-1, _SQUARES, 3)
    sides = squares[..., 0] * 0.2 * min(height, width)
    erased = torch.zeros(len(images), height, width, dtype=torch.bool)
    for square in range(_SQUARES):
        side = sides[:, square]
        rows = _span(squares[:, square, 1] * (height - side), side, height)
        columns = _span(squares[:, square, 2] * (width - side), side, width)
        used = torch.from_numpy(square < numbers)
        erased |= rows[:, :, None] & columns[:, None, :] & used[:, None, None]
    return images.masked_fill(erased[:, None], _GREY)


def _span(start: Draws, side: Draws, size: int) -> Tensor:
    """Which of ``size`` pixels have their centre between ``start`` and ``start + side``, [B, size]."""
    centres = np.arange(size) + 0.5
    return torch.from_numpy((centres >= start[:, None]) & (centres < (start + side)[:, None]))
