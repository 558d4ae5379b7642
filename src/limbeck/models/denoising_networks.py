"""Networks inside denoisers: samples, times and classes in, a raw answer and the bottleneck's features out."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, require

_TIMES = 16
_OCTAVES = 3


class PointNetwork(nn.Module):
    """Multi-layer perceptron on points, with 3 Fourier pairs of each coordinate and 16 of the time.

    Without those of the coordinates (arXiv 2006.10739) it stays for thousands of updates at the best answer for a
    Gaussian of the data's spread, and sees no modes. The last layer begins at 0, so that a denoiser with EDM's
    preconditioning begins as its skip connection.

    Args:
        dimensions: numbers a point.
        hidden: units of each hidden layer.
        layers: hidden layers.

    Attributes:
        feature_shape: that of a sample's features, the last hidden layer.

    Raises:
        LimbeckError: no units or no hidden layer.
    """

    frequencies: Tensor

    def __init__(self, dimensions: int, hidden: int, layers: int) -> None:
        super().__init__()
        if hidden < 1 or layers < 1:
            raise LimbeckError(f"mlp_denoiser: hidden is {hidden} and layers {layers}; both must be at least 1")
        # From a quarter of a turn to eight turns over 1000 steps (a choice).
        turns = 2 * math.pi * torch.logspace(-2, 3, _TIMES, base=2.0)
        self.register_buffer("frequencies", turns / 1000, persistent=False)
        sizes = [dimensions * (1 + 2 * _OCTAVES) + 2 * _TIMES, *[hidden] * layers]
        modules: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            modules += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.hidden = nn.Sequential(*modules)
        self.answer = nn.Linear(hidden, dimensions)
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)
        self.feature_shape = (hidden,)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """The answer [B, D] and the features [B, H]; points have no classes."""
        coordinates = torch.cat([x.float() * 2.0**octave for octave in range(_OCTAVES)], dim=1)
        angles = torch.cat([coordinates, time[:, None] * self.frequencies.float()], dim=1)
        features = self.hidden(torch.cat([x, angles.sin().to(x.dtype), angles.cos().to(x.dtype)], dim=1))
        return self.answer(features), features


class UNet(nn.Module):
    """diffusers' UNet2DModel, with the output of its middle block as features.

    Its last convolution begins at 0, as in :class:`PointNetwork`.

    Args:
        channels: of the images.
        size: height and width of the images.
        width: channels of the first level.
        multipliers: channels of each level in widths.
        layers: residual blocks a level.
        attention: number of the deepest levels with attention.
        dropout: in the residual blocks.
        classes: number of classes; 0 for none. One more embedding stands for no class.

    Attributes:
        feature_shape: that of a sample's features.

    Raises:
        LimbeckError: an image that cannot be halved so often, or options out of range.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        width: int,
        multipliers: Sequence[int],
        layers: int,
        attention: int,
        dropout: float,
        classes: int,
    ) -> None:
        super().__init__()
        levels = len(multipliers)
        if min(width, layers, levels, *multipliers) < 1 or not 0 <= attention <= levels or not 0 <= dropout < 1:
            raise LimbeckError(
                f"unet_denoiser: width {width}, multipliers {list(multipliers)}, layers {layers} must be at least 1, "
                f"attention {attention} from 0 to the number of levels, dropout {dropout} from 0 to below 1"
            )
        factor = 2 ** (levels - 1)
        if size[0] % factor or size[1] % factor:
            raise LimbeckError(
                f"unet_denoiser of {levels} levels halves the image {levels - 1} times, and {size[0]}x{size[1]} is no "
                f"multiple of {factor}: give fewer multipliers"
            )
        diffusers = require("diffusers", extra="diffusion")
        attends = [level >= levels - attention for level in range(levels)]
        self.net = diffusers.UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=layers,
            block_out_channels=tuple(width * times for times in multipliers),
            down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
            up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
            norm_num_groups=math.gcd(32, max(width // 4, 1)),
            add_attention=attention > 0,
            dropout=dropout,
            num_class_embeds=classes + 1 if classes else None,
        )
        nn.init.zeros_(self.net.conv_out.weight)
        nn.init.zeros_(self.net.conv_out.bias)
        self.feature_shape = (width * multipliers[-1], size[0] // factor, size[1] // factor)
        self._tap = _Tap()
        self.net.mid_block.register_forward_hook(self._tap)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """The answer [B, C, H, W] and the features [B, D, h, w]."""
        answer = self.net(x, time, class_labels=label).sample
        features, self._tap.value = self._tap.value, None
        assert features is not None
        return answer, features


class _Tap:
    """Forward hook that keeps the output of the module it hangs on until it is collected.

    An object, not a closure: ``copy.deepcopy`` of a network copies hook and holder together.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.value = output
