"""Discriminators: on the features of a denoiser, or on the outputs of classifiers."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from limbeck.errors import LimbeckError
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


def logits_discriminator(classes: int, reduction: int = 8, final_relu: bool = True) -> nn.Sequential:
    """From a classifier's outputs [B, C] to two logits, the student's and the teacher's (MEAL V2, arXiv 2009.08453).

    Three linear layers (1x1 convolutions in the released code), C -> C / K -> C / K^2 -> 2, rounded down and at least
    1 (a choice: the released code has no width for fewer than K^2 classes).

    Args:
        classes: C.
        reduction: K.
        final_relu: a ReLU after the last layer too, as in the released code. Both logits are then at least 0, the
            binary cross-entropy at least ln(2) / 2, and where all are 0 there is no gradient.

    Raises:
        LimbeckError: sizes below one.
    """
    if classes < 1 or reduction < 1:
        raise LimbeckError(f"a discriminator of {classes} classes with K = {reduction}: both must be at least 1")
    first = max(classes // reduction, 1)
    second = max(first // reduction, 1)
    layers = [nn.Linear(classes, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2)]
    return nn.Sequential(*layers, *([nn.ReLU()] if final_relu else []))
