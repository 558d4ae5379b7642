"""Images as parameters: pixels that are optimised until networks see in them what they should."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.models.classifier import ImageTask
from limbeck.stages.objective import Terms
from limbeck.stages.synthesise import Observe, Synthesiser


@dataclass(frozen=True)
class PixelSettings:
    """How pixels are optimised (SRe2L, arXiv 2306.13092, and its released code).

    Attributes:
        iterations: steps of Adam; 0 leaves the images as they start.
        lr: its learning rate in normalised pixels, which falls to 0 by half a cosine.
        betas: its decay rates.
        crop: whether networks see a random part of 8 to 100 % of the area, resized, one for all images of a step.
        flip: whether they see all images mirrored in half of the steps.
        jitter: largest random shift in pixels, around the edges, of a step.

    Raises:
        LimbeckError: a number out of range.
    """

    iterations: int = 4000
    lr: float = 0.25
    betas: tuple[float, float] = (0.5, 0.9)
    crop: bool = True
    flip: bool = True
    jitter: int = 32

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.jitter < 0 or not self.lr > 0:
            raise LimbeckError(
                f"iterations is {self.iterations}, jitter {self.jitter} and lr {self.lr}; "
                "the first two must be 0 or more and lr above 0"
            )


class PixelSynthesiser(Synthesiser):
    """Minimises ``terms`` over the pixels of a chunk, in the normalised space of the task, within [0, 1].

    The last iterate is kept. A subclass writes :meth:`terms`, and :meth:`start` where images do not start as noise.

    Args:
        task: classes and images.
        chunks: the labels of each chunk, int64 [B].
        settings: how pixels are optimised.
    """

    def __init__(self, task: ImageTask, chunks: Sequence[Tensor], settings: PixelSettings) -> None:
        super().__init__()
        self.classes = task.classes
        self.shape = (task.channels, *task.size)
        self.chunks = list(chunks)
        self.settings = settings
        self.iterations = settings.iterations
        self.mean, self.std = task.mean, task.std
        self.described = repr(settings)  # plain data: it belongs to the stage's identity

    def terms(self, number: int, images: Tensor, labels: Tensor) -> Terms:
        """The named terms of the loss of what networks see of chunk ``number``.

        Args:
            number: of the chunk.
            images: float [B, C, H, W], after crop, flip and shift.
            labels: int64 [B].
        """
        raise NotImplementedError(f"{type(self).__name__} has no terms")

    def start(self, number: int) -> Tensor | None:
        """The images that chunk ``number`` starts from, [B, C, H, W] in [0, 1]; None: normal noise."""
        return None

    def make(self, number: int, device: torch.device, observe: Observe) -> Tensor:
        """See :class:`~limbeck.stages.synthesise.Synthesiser`."""
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        labels = self.chunks[number].to(device)
        start = self.start(number)
        # Drawn on the host: the same on every device.
        noise = torch.randn(len(labels), *self.shape) if start is None else None
        pixels = noise.to(device) if noise is not None else (start.to(device) - mean) / std  # type: ignore[union-attr]
        pixels.requires_grad_(True)
        settings = self.settings
        adam = torch.optim.Adam([pixels], lr=settings.lr, betas=settings.betas)
        for step in range(settings.iterations):
            adam.param_groups[0]["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * step / settings.iterations))
            terms = {
                name: term if isinstance(term, Tensor) else term.value
                for name, term in self.terms(number, seen(pixels, settings) * std + mean, labels).items()
            }
            (pixels.grad,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), pixels)
            adam.step()
            clamp_pixels(pixels, mean, std)
            observe(step, terms)
        return (pixels.detach() * std + mean).clamp(0, 1)


@torch.no_grad()
def clamp_pixels(pixels: Tensor, mean: Tensor, std: Tensor) -> None:
    """Bring normalised pixels, in place, into the range of real images: [-mean / std, (1 - mean) / std] a channel."""
    pixels.clamp_(min=-mean / std, max=(1 - mean) / std)


def seen(pixels: Tensor, settings: PixelSettings) -> Tensor:
    """What networks see in one step: cropped, mirrored and shifted, all images in the same way.

    As in the released code, whose transforms act on the batch at once. Draws from torch's global generator.
    """
    height, width = pixels.shape[-2:]
    if settings.crop:
        from torchvision.transforms.v2 import RandomResizedCrop
        from torchvision.transforms.v2 import functional as tv

        part = RandomResizedCrop((height, width), antialias=True).make_params([pixels])
        pixels = tv.resized_crop(
            pixels, part["top"], part["left"], part["height"], part["width"], [height, width], antialias=True
        )
    if settings.flip and bool(torch.rand(()) < 0.5):
        pixels = pixels.flip(-1)
    if settings.jitter:
        down, right = torch.randint(settings.jitter + 1, (2,)).tolist()
        pixels = pixels.roll((down, right), (2, 3))
    return pixels
