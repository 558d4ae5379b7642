"""A small U-Net."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError

Norm = Literal["batch", "group", "none"]


class UNet(nn.Module):
    """Convolutional encoder and decoder with skip connections (U-Net, arXiv 1505.04597), for images of any size.

    Two padded 3x3 convolutions a level, max pooling down, bilinear enlargement up. With a ``stride`` of s the pixels
    of every s x s square become channels first, and the output is enlarged at the end: about s^2 times less work.
    Images whose sides are no multiple of ``stride * 2**depth`` are padded by their edge, and the output is cut back.

    Args:
        channels: channels of the images.
        outputs: channels of the output.
        width: channels of the first level; every further one has twice as many.
        depth: how often the image is halved.
        stride: pixels of the image to one of the first level.
        norm: normalisation after each convolution; "group" and "none" keep no batch statistics.

    Raises:
        LimbeckError: a width, depth or stride below one, or an unknown normalisation.
    """

    def __init__(self, channels: int, outputs: int, width: int, depth: int, stride: int, norm: Norm) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth), ("stride", stride)):
            if value < 1:
                raise LimbeckError(f"{name} must be at least 1, got {value}")
        widths = [width * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(
            _level(inputs, outputs, norm)
            for inputs, outputs in zip([channels * stride**2, *widths[:-1]], widths, strict=True)
        )
        self.decoder = nn.ModuleList(
            _level(low + skip, skip, norm) for low, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, outputs, kernel_size=1)
        self.depth, self.stride = depth, stride

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, channels, H, W] -> [B, outputs, H, W]."""
        height, width = images.shape[-2:]
        unit = self.stride * 2**self.depth
        padded = F.pad(images, (0, -width % unit, 0, -height % unit), mode="replicate")
        features = F.pixel_unshuffle(padded, self.stride)
        skips: list[Tensor] = []
        for level, encode in enumerate(self.encoder):
            features = encode(F.max_pool2d(features, 2) if level else features)
            skips.append(features)
        for decode, skip in zip(self.decoder, skips[-2::-1], strict=True):
            larger = F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
            features = decode(torch.cat([larger, skip], dim=1))
        output: Tensor = self.head(features)
        if self.stride > 1:
            output = F.interpolate(output, scale_factor=float(self.stride), mode="bilinear", align_corners=False)
        return output[..., :height, :width]


def _level(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(*_convolution(inputs, outputs, norm), *_convolution(outputs, outputs, norm))


def _convolution(inputs: int, outputs: int, norm: Norm) -> list[nn.Module]:
    norms: dict[str, nn.Module] = {
        "batch": nn.BatchNorm2d(outputs),
        "group": nn.GroupNorm(math.gcd(8, outputs), outputs),
        "none": nn.Identity(),
    }
    if norm not in norms:
        raise LimbeckError(f"norm must be one of {sorted(norms)}, got {norm!r}")
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=norm == "none")
    return [convolution, norms[norm], nn.ReLU()]
