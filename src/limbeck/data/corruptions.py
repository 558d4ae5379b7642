"""Corruptions of images, as of the robustness benchmarks: what a test stream may do to a model.

The families and, where pixel values are concerned, the strengths are those of ImageNet-C (Hendrycks and Dietterich,
"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", arXiv 1903.12261, and its released
code). Lengths (the width of a blur, the size of a block) are parts of the image's shorter side, so that they mean
the same for images of any size; the blur's are those of CIFAR-10-C. ``brightness`` adds to every channel instead of
to the V of HSV. ``invert_gamma`` (a gamma curve on the inverted image) and ``rotation`` are no members of that
benchmark; their strengths are choices.

What is random about a corrupted image depends on (seed, index, name of the corruption) only: the same image is
corrupted in the same way whenever it comes by, and a higher severity is more of the same.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from limbeck.data.random import derive, uniforms
from limbeck.errors import LimbeckError, nearest

Draws = NDArray[np.float64]

SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(name: str, images: Tensor, severity: int, *, seed: int, indices: Tensor) -> Tensor:
    """Corrupt each image of a batch.

    Args:
        name: which corruption, a key of :data:`CORRUPTIONS`.
        images: float [B, 1 or 3, H, W] in [0, 1], on the CPU.
        severity: from 1 (mild) to 5.
        seed: the seed of the run.
        indices: int64 [B], stable positions of the samples in their source.

    Returns:
        Images of the same shape in [0, 1].

    Raises:
        LimbeckError: there is no such corruption or severity.
    """
    check(name, severity)
    function, strengths, draws = CORRUPTIONS[name]
    count = draws if draws >= 0 else images[0].numel()
    drawn = uniforms(derive(seed, "corruption", name), indices.numpy(), draws=count)
    return function(images, strengths[severity - 1], drawn).clamp(0, 1)


def check(name: str, severity: int) -> None:
    """Refuse a corruption that is not there.

    Raises:
        LimbeckError: there is no such corruption or severity.
    """
    if name not in CORRUPTIONS:
        known = ", ".join(CORRUPTIONS)
        raise LimbeckError(f"there is no corruption {name!r}; known: {known}.{nearest(name, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise LimbeckError(f"severity is {severity}; it must be a whole number from 1 to 5")


def _like(images: Tensor, draws: Draws) -> Tensor:
    return torch.from_numpy(draws).view(images.shape)


def _gaussian_noise(images: Tensor, deviation: float, draws: Draws) -> Tensor:
    # Half a step up: the draws are multiples of 2^-53, and the normal quantile of 0 is infinite.
    normal = torch.special.ndtri(_like(images, draws) + 2.0**-54)
    return images + deviation * normal.to(images.dtype)


def _shot_noise(images: Tensor, photons: float, draws: Draws) -> Tensor:
    """Counts of a Poisson distribution around ``photons`` for a white pixel, by inverting its distribution."""
    rate = photons * images.double()
    left = _like(images, draws).clone()
    term, count = (-rate).exp(), torch.zeros_like(rate)
    # 12 standard deviations above the largest rate lies less than one count in 10^20.
    for number in range(1, math.ceil(photons + 12 * math.sqrt(photons)) + 20):
        left -= term
        above = left >= 0
        if not bool(above.any()):
            break
        count += above
        term = term * rate / number
    return (count / photons).to(images.dtype)


def _impulse_noise(images: Tensor, share: float, draws: Draws) -> Tensor:
    """Salt and pepper: that share of the values, in all channels apart, half of them black and half white."""
    drawn = _like(images, draws)
    noisy = torch.where(drawn < share / 2, torch.zeros_like(images), images)
    return torch.where(drawn >= 1 - share / 2, torch.ones_like(images), noisy)


def _gaussian_blur(images: Tensor, width: float, draws: Draws) -> Tensor:
    """Rows, then columns; ``width`` is the standard deviation over the shorter side."""
    deviation = width * min(images.shape[-2:])
    radius = max(1, math.ceil(3 * deviation))
    bell = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).double() / deviation) ** 2)
    weights: list[float] = (bell / bell.sum()).tolist()
    for axis in (-2, -1):
        size = images.shape[axis]
        # Sums of shifted images: a convolution's last bits may depend on the other images of the batch.
        total = torch.zeros_like(images)
        for shift, weight in enumerate(weights, -radius):
            places = (torch.arange(size) + shift).clamp(0, size - 1)  # the border is repeated
            total = total + weight * images.index_select(axis, places)
        images = total
    return images


def _contrast(images: Tensor, factor: float, draws: Draws) -> Tensor:
    mean = images.double().mean((2, 3), keepdim=True).to(images.dtype)
    return mean + factor * (images - mean)


def _brightness(images: Tensor, amount: float, draws: Draws) -> Tensor:
    return images + amount


def _invert_gamma(images: Tensor, gamma: float, draws: Draws) -> Tensor:
    return 1 - (1 - images) ** gamma


def _rotation(images: Tensor, degrees: float, draws: Draws) -> Tensor:
    """By that angle to either side, bilinear, black outside."""
    height, width = images.shape[-2:]
    angle = torch.from_numpy(np.where(draws[:, 0] < 0.5, -1.0, 1.0)) * math.radians(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # In coordinates from -1 to 1 a pixel is 2 / size long, hence the ratio between the axes.
    rows = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3).to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


def _pixelate(images: Tensor, share: float, draws: Draws) -> Tensor:
    """Fewer and larger pixels: ``share`` of them along each side."""
    height, width = images.shape[-2:]
    small = (max(1, int(height * share)), max(1, int(width * share)))
    return F.interpolate(F.interpolate(images, small, mode="area"), (height, width), mode="nearest-exact")


_A_VALUE = -1  # as many draws as the image has values

CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float, Draws], Tensor], tuple[float, ...], int]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), _A_VALUE),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3), _A_VALUE),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), _A_VALUE),
    "gaussian_blur": (_gaussian_blur, (0.0125, 0.01875, 0.021875, 0.025, 0.03125), 0),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), 0),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), 0),
    "invert_gamma": (_invert_gamma, (1.25, 1.5, 2.0, 3.0, 4.0), 0),
    "rotation": (_rotation, (5.0, 10.0, 15.0, 22.5, 30.0), 1),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), 0),
}
"""Name -> the function, its strength at severities 1 to 5, and how many draws an image needs (-1: one a value)."""
