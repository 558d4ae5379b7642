"""A discriminator that tells classes too."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier


class CriticOutput(NamedTuple):
    """What :class:`CriticClassifier` says.

    Attributes:
        logits: [B, K], of the classes.
        features: None.
        realness: [B, h, w], higher where a patch looks real.
    """

    logits: Tensor
    features: None
    realness: Tensor


class CriticClassifier(Classifier):
    """Strided convolutions with a map of realness (PatchGAN) and class logits (SPARSE, arXiv 2508.06429, as released).

    ``depth`` convolutions 4x4 of stride 2, each with twice the channels of the one before, and leaky ReLUs of slope
    0.01; then 3x3 to one score a place, and a convolution over all that is left to the classes. No normalisation, of
    images either. The layers are those of StarGAN's discriminator (arXiv 1711.09020, appendix); that neither head has a
    bias is taken from there.

    Args:
        classes: names of the classes.
        channels: of the images, 1 or 3.
        size: height and width of the images.
        width: channels of the first convolution.
        depth: convolutions.

    Raises:
        LimbeckError: sizes below one, or images too small for so many halvings.
    """

    def __init__(
        self, classes: Sequence[str], channels: int, size: tuple[int, int], width: int = 64, depth: int = 6
    ) -> None:
        if width < 1 or depth < 1 or min(size) >> depth < 1:
            raise LimbeckError(
                f"a critic of width {width} that halves images of {list(size)} {depth} times: width and depth must be "
                "at least 1, and a pixel must be left"
            )
        super().__init__(_Critic(len(classes), channels, size, width, depth), classes, channels=channels, size=size)

    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> CriticOutput:  # type: ignore[override]  # says more
        """Class logits and realness of a batch."""
        logits, realness = self.body(*self.inputs(batch))
        self._tap.value = None
        return CriticOutput(logits, None, realness)


class _Critic(nn.Module):
    def __init__(self, classes: int, channels: int, size: tuple[int, int], width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(depth):
            layers += [nn.Conv2d(channels, width * 2**level, 4, stride=2, padding=1), nn.LeakyReLU(0.01)]
            channels = width * 2**level
        self.trunk = nn.Sequential(*layers)
        self.realness = nn.Conv2d(channels, 1, 3, padding=1, bias=False)
        self.classes = nn.Conv2d(channels, classes, (size[0] >> depth, size[1] >> depth), bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return self.classes(features).flatten(1), self.realness(features).squeeze(1)
