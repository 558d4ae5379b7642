"""A generator that turns an image into one of another class, and tells classes too."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.models.classifier import with_channels


class Translator(nn.Module):
    """Attention U-Net from an image and a class to an image (SPARSE, arXiv 2508.06429, as released).

    Three levels of ``width``, 2 ``width`` and 4 ``width`` channels and a bottleneck of 8 ``width``; skips pass
    attention gates (arXiv 1804.03999). The class comes as planes, one-hot, beside the image's channels, into the first
    level only. To tell classes there is a first level without planes; all deeper ones are shared, and a linear layer
    takes the mean over the bottleneck. The output is linear.

    Choices: group normalisation, so that images do not see one another, bilinear enlargement, gates as wide as half
    their skip. Images whose sides are no multiple of 8 are padded by their edge, and the output is cut back.

    Args:
        channels: of the images, 1 or 3; others are converted.
        classes: K.
        width: channels of the first level.

    Raises:
        LimbeckError: sizes that cannot be.
    """

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        if channels not in (1, 3) or classes < 1 or width < 1:
            raise LimbeckError(
                f"a translator of {channels} channels, {classes} classes and width {width}: channels must be 1 or 3, "
                "the others at least 1"
            )
        self.channels, self.classes = channels, classes
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.first = _level(channels + classes, width)
        self.first_plain = _level(channels, width)
        self.deeper = nn.ModuleList(_level(a, b) for a, b in pairwise(widths))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.gates = nn.ModuleList(AttentionGate(skip, low) for low, skip in pairs)
        self.decoder = nn.ModuleList(_level(low + skip, skip) for low, skip in pairs)
        self.output = nn.Conv2d(width, channels, kernel_size=1)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor, target: Tensor | None = None) -> Tensor:
        """Images [B, channels, H, W] of classes ``target`` [B]; without a target the logits [B, K] of the images."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate")
        if target is None:
            return self.head(self._encode(self.first_plain(padded))[-1].mean((2, 3)))
        planes = F.one_hot(target, self.classes).to(padded)[:, :, None, None].expand(-1, -1, *padded.shape[-2:])
        *skips, features = self._encode(self.first(torch.cat([padded, planes], 1)))
        for skip, gate, decode in zip(skips[::-1], self.gates, self.decoder, strict=True):
            larger = F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
            features = decode(torch.cat([gate(skip, larger), larger], 1))
        made: Tensor = self.output(features)
        return made[..., :height, :width]

    def convert(self, images: Tensor) -> Tensor:
        """Images [B, 1 | 3, H, W] with this network's channels."""
        return with_channels(images, self.channels)

    def _encode(self, features: Tensor) -> list[Tensor]:
        levels = [features]
        for encode in self.deeper:
            levels.append(encode(F.max_pool2d(levels[-1], 2)))
        return levels


class AttentionGate(nn.Module):
    """``sigmoid(psi(relu(W_x x + W_g g))) x``: where a coarser level looks (arXiv 1804.03999, equation 1).

    Args:
        skip: channels of x.
        gate: channels of g, which has the same size.
    """

    def __init__(self, skip: int, gate: int) -> None:
        super().__init__()
        inner = max(1, skip // 2)
        self.of_skip, self.of_gate = nn.Conv2d(skip, inner, 1), nn.Conv2d(gate, inner, 1, bias=False)
        self.psi = nn.Conv2d(inner, 1, 1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """Features x [B, skip, H, W], weighed place by place."""
        return skip * self.psi(F.relu(self.of_skip(skip) + self.of_gate(gate))).sigmoid()


def _level(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        convolution = nn.Conv2d(channels, outputs, kernel_size=3, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(math.gcd(8, outputs), outputs), nn.ReLU()]
    return nn.Sequential(*layers)
