"""Points of the plane from distributions that are known: what a generative model can be measured on exactly."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.data import Batch, Data, Records
from limbeck.data.random import derive, uniforms
from limbeck.errors import LimbeckError

if TYPE_CHECKING:
    from limbeck.models.point_task import PointTask

_BOARD = 4  # squares a side
_RING = 8  # modes


class PointSamples(Records):
    """Points, map-style, every one with its stable ``index``.

    Args:
        points: float [N, D].

    Raises:
        LimbeckError: no points, another shape, or a coordinate that is not finite (naming the index).
    """

    def __init__(self, points: Tensor) -> None:
        if points.ndim != 2 or not points.is_floating_point() or not points.numel():
            raise LimbeckError(f"points are {points.dtype} of shape {list(points.shape)}, expected float [N, D], N > 0")
        broken = torch.nonzero(~points.isfinite().all(dim=1))[:, 0]
        if len(broken):
            raise LimbeckError(f"the point at index {int(broken[0])} is not finite: {points[broken[0]].tolist()}")
        self.points = points.float()
        self.indices = torch.arange(len(points))
        self.num_samples = len(points)

    def __getitem__(self, position: int) -> Batch:
        return {name: value[0] for name, value in self.fetch(torch.tensor([position])).items()}

    def fetch(self, positions: Tensor) -> Batch:
        """``point`` float32 [B, D] and ``index`` int64 [B]."""
        return {
            "point": self.points.index_select(0, positions),
            "index": self.indices.index_select(0, positions),
        }

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """The coordinates."""
        digest.update(f"points {tuple(self.points.shape)}".encode())
        digest.update(self.points.contiguous().numpy().tobytes())


@dataclass(frozen=True)
class PointData(Data):
    """Points of one run, and where their modes are, if they are known.

    Attributes:
        centres: float [M, D], the centres of the modes.
        reach: how far from a centre a point still belongs to its mode.
    """

    train: PointSamples
    validation: PointSamples
    test: PointSamples
    centres: Tensor | None = None
    reach: float = 0.0

    @cached_property
    def task(self) -> "PointTask":
        """The number of dimensions."""
        from limbeck.models.point_task import PointTask

        return PointTask(self.train.points.shape[1])


def points(
    seed: int,
    shape: Literal["ring", "checkerboard"] = "ring",
    train_size: int = 20_000,
    validation: int = 2_000,
    test_size: int = 4_000,
    radius: float = 0.7,
    std: float = 0.05,
) -> PointData:
    """Points of the plane: a ring of eight Gaussians, or the dark squares of a 4 x 4 checkerboard.

    Both have about the same spread, 0.5 a coordinate, with the ring's default radius.

    Args:
        seed: the seed of the run, which draws all points.
        shape: ring or checkerboard.
        train_size: number of training points.
        validation: number of validation points.
        test_size: number of test points.
        radius: of the ring, from its middle to the middles of the Gaussians; the board reaches from -radius * 1.25
            to radius * 1.25.
        std: standard deviation of each Gaussian; the board's squares have sharp edges and do not use it.

    Raises:
        LimbeckError: an unknown shape, or numbers out of range.
    """
    if shape not in ("ring", "checkerboard"):
        raise LimbeckError(f"data.shape is {shape!r}; it must be ring or checkerboard")
    for name, number in (("train_size", train_size), ("validation", validation), ("test_size", test_size)):
        if number < 2:
            raise LimbeckError(f"data.{name} is {number}; it must be at least 2")
    for name, size in (("radius", radius), ("std", std)):
        if not 0 < size < float("inf"):
            raise LimbeckError(f"data.{name} is {size}; it must be above 0")
    parts = {
        name: PointSamples(_draw(shape, count, radius, std, derive(seed, "points", name)))
        for name, count in (("train", train_size), ("validation", validation), ("test", test_size))
    }
    centres = _centres(shape, radius)
    # Three standard deviations of a Gaussian of the plane hold 98.9 % of it; half a square holds its inner circle.
    reach = 3 * std if shape == "ring" else _side(radius) / 2
    return PointData(
        parts["train"], parts["validation"], parts["test"], None, (), torch.from_numpy(centres).float(), reach
    )


def _centres(shape: str, radius: float) -> NDArray[np.float64]:
    if shape == "ring":
        angles = 2 * np.pi * np.arange(_RING) / _RING
        return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    dark = [(row, column) for row in range(_BOARD) for column in range(_BOARD) if (row + column) % 2 == 0]
    return _side(radius) * (np.array(dark) - (_BOARD - 1) / 2)


def _side(radius: float) -> float:
    return 2 * 1.25 * radius / _BOARD


def _draw(shape: str, count: int, radius: float, std: float, key: int) -> Tensor:
    centres = _centres(shape, radius)
    draws = uniforms(key, np.arange(count), draws=3)
    middles = centres[(draws[:, 0] * len(centres)).astype(np.int64)]
    if shape == "ring":
        # Box and Muller: two uniform numbers to two normal ones.
        length = std * np.sqrt(-2 * np.log1p(-draws[:, 1]))
        angle = 2 * np.pi * draws[:, 2]
        offsets = np.stack([length * np.cos(angle), length * np.sin(angle)], axis=1)
    else:
        offsets = _side(radius) * (draws[:, 1:] - 0.5)
    return torch.from_numpy(middles + offsets).float()
