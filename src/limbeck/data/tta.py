"""Test-time augmentation of whole batches, one random draw a call."""

from typing import NamedTuple

import torch
from torch import Tensor


class Ranges(NamedTuple):
    """How far :func:`katana` goes to either side; of ``blur`` the largest sigma, in pixels."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    gamma: float
    degrees: float
    scale: float
    blur: float


STRONG = Ranges(0.4, 0.3, 0.5, 0.06, 0.3, 15.0, 0.1, 0.5)
SOFT = Ranges(0.2, 0.15, 0.25, 0.03, 0.15, 8.0, 0.05, 0.25)


def katana(images: Tensor, *, flip: bool = True, ranges: Ranges = STRONG) -> Tensor:
    """The augmentation that CoTTA averages over (arXiv 2203.13591; its released CIFAR transforms).

    It goes back to KATANA (arXiv 2109.08191). In this order: colour jitter in random order (brightness U[0.6, 1.4],
    contrast U[0.7, 1.3], saturation U[0.5, 1.5], hue U[-0.06, 0.06], gamma U[0.7, 1.3]; saturation and hue say
    nothing about grey images and leave them as they are); edges padded by half the size; a rotation by up to 15
    degrees, a shift by up to 1/16 of the padded size in whole pixels, a scale from 0.9 to 1.1, bilinear; Gaussian
    blur of 5 x 5 pixels with sigma U[0.001, 0.5]; the centre cut back to the size; a mirror image half of the time;
    Gaussian noise of standard deviation 0.005. Values are clipped to [0, 1] at both ends.

    All images of a call share the draws (but the noise), which come from torch's global generators: the CPU's, and
    for the noise that of the images' device.

    Args:
        images: float [B, 1 or 3, H, W] in [0, 1].
        flip: whether images may be mirrored.
        ranges: those above, or about half of them (``SOFT``, which the released code has but does not use).

    Returns:
        Images of the same shape in [0, 1].
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    height, width = images.shape[-2:]
    views = _jitter(images.clamp(0, 1), ranges)

    rows, columns = height // 2, width // 2
    views = functional.pad(views, [columns, rows, columns, rows], padding_mode="edge")
    padded = (width + 2 * columns, height + 2 * rows)
    shift = [round(_uniform(-size / 16, size / 16)) for size in padded]
    views = functional.affine(
        views,
        angle=_uniform(-ranges.degrees, ranges.degrees),
        translate=[float(pixels) for pixels in shift],
        scale=_around(ranges.scale),
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    views = functional.gaussian_blur(views, [5, 5], [_uniform(0.001, ranges.blur)])
    views = functional.center_crop(views, [height, width])

    if _uniform(0, 1) < 0.5 and flip:
        views = views.flip(-1)
    return (views + 0.005 * torch.randn_like(views)).clamp(0, 1)


def _jitter(images: Tensor, ranges: Ranges) -> Tensor:
    from torchvision.transforms.v2 import functional

    for step in torch.randperm(5).tolist():
        if step == 0:
            images = functional.adjust_brightness(images, _around(ranges.brightness))
        elif step == 1:
            images = functional.adjust_contrast(images, _around(ranges.contrast))
        elif step == 2:
            images = functional.adjust_saturation(images, _around(ranges.saturation))
        elif step == 3:
            images = functional.adjust_hue(images, _uniform(-ranges.hue, ranges.hue))
        else:
            # Next to black the slope of a power below 1 has no bound; 1e-8 as in the released code.
            images = functional.adjust_gamma(images.clamp_min(1e-8), _around(ranges.gamma))
    return images


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _around(reach: float) -> float:
    """A factor from 1 - reach to 1 + reach."""
    return _uniform(1 - reach, 1 + reach)
