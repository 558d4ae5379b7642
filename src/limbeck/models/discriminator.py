"""A discriminator that looks through the features of a denoiser."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from limbeck.models.denoiser import Denoised, Denoiser


class Judged(NamedTuple):
    """What :class:`Critic` says.

    Attributes:
        clean: [B, ...], the denoised samples.
        logit: [B], above 0 where the noisy sample looks real.
    """

    clean: Tensor
    logit: Tensor


class Critic(nn.Module):
    """A denoiser with a discriminator's head on its bottleneck features (arXiv 2405.14867, section 4.3).

    Args:
        denoiser: not copied.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.head = discriminator_head(denoiser.feature_shape)

    def forward(self, batch: Mapping[str, Tensor]) -> Judged:
        """Denoise and judge a batch, as of :meth:`limbeck.models.denoiser.Denoiser.forward`."""
        denoised: Denoised = self.denoiser(batch)
        return Judged(denoised.clean, self.head(denoised.features).flatten().float())


def discriminator_head(shape: Sequence[int]) -> nn.Sequential:
    """From features of a sample, [C, H, W] or [D], to one logit.

    Of maps: convolutions 4x4 of stride 2 down to a side of at most 4, one over what is left, each with GroupNorm and
    SiLU, then 1x1. These are the heads of the released code for 8x8 (ImageNet-64) and 32x32 (SDXL) features; other
    sides are reconstruction. Of vectors: one hidden layer of the same width, a choice.
    """
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], shape[0]), nn.SiLU(), nn.Linear(shape[0], 1))
    channels, height, width = shape
    # Four channels a group at least: over a 1x1 map GroupNorm would make a group of one channel zero.
    groups = math.gcd(32, max(channels // 4, 1))
    layers: list[nn.Module] = []
    while max(height, width) > 4 and min(height, width) >= 2:
        layers += [nn.Conv2d(channels, channels, 4, stride=2, padding=1), nn.GroupNorm(groups, channels), nn.SiLU()]
        height, width = height // 2, width // 2
    layers += [nn.Conv2d(channels, channels, (height, width)), nn.GroupNorm(groups, channels), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 1))
