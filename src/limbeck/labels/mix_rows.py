"""How a batch is mixed, drawn once and applied as often as wanted: what a store of labels keeps of mixup and CutMix."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError


@dataclass(frozen=True)
class Draw:
    """How a batch is mixed in pairs.

    Attributes:
        partner: int64 [B], a permutation: whom each image is mixed with.
        share: of the image itself, in [0, 1]; its partner has the rest.
        box: top, bottom, left and right of what is cut out of the partner; empty for mixup.
    """

    partner: Tensor
    share: float
    box: tuple[int, int, int, int] = (0, 0, 0, 0)


def draw_mixup(count: int, alpha: float | int, generator: torch.Generator, group: int = 0) -> Draw:
    """Partner and share of mixup (arXiv 1710.09412): share ~ Beta(alpha, alpha), one a batch.

    Args:
        count: B.
        alpha: > 0.
        generator: draws everything.
        group: partners come from the same group of so many neighbours in the batch; 0: from the whole batch.

    Raises:
        LimbeckError: alpha <= 0, or a batch that is not made of whole groups.
    """
    share = _beta(alpha, generator)
    return Draw(_partners(count, generator, group), share)


def draw_cutmix(
    count: int, size: tuple[int, int], alpha: float | int, generator: torch.Generator, group: int = 0
) -> Draw:
    """Partner and box of CutMix (arXiv 1905.04899), one box a batch.

    The box has sides ``sqrt(1 - lam)`` of the image's, lam ~ Beta(alpha, alpha), around a uniform centre; it is
    clipped at the border, and the share is the fraction really left.

    Args:
        count: B.
        size: height and width of the images.
        alpha: > 0.
        generator: draws everything.
        group: see :func:`draw_mixup`.

    Raises:
        LimbeckError: alpha <= 0, or a batch that is not made of whole groups.
    """
    height, width = size
    share = _beta(alpha, generator)
    partner = _partners(count, generator, group)
    side = math.sqrt(1 - share)
    y, x = torch.rand(2, generator=generator, device=generator.device).tolist()
    top, bottom = _interval(int(y * height), int(side * height), height)
    left, right = _interval(int(x * width), int(side * width), width)
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return Draw(partner, kept, (top, bottom, left, right))


def blend(
    images: Float[Tensor, "batch channels height width"],
    others: Float[Tensor, "batch channels height width"],
    share: Float[Tensor, " batch"],
) -> Float[Tensor, "batch channels height width"]:
    """``share x + (1 - share) other``, each image with a share of its own (mixup)."""
    share = share[:, None, None, None]
    return share * images + (1 - share) * others


def paste_boxes(
    images: Float[Tensor, "batch channels height width"],
    others: Float[Tensor, "batch channels height width"],
    boxes: Int[Tensor, "batch 4"],
) -> Float[Tensor, "batch channels height width"]:
    """Each image with a box of the other (CutMix).

    Args:
        images: [B, C, H, W].
        others: what the boxes are cut out of, [B, C, H, W].
        boxes: top, bottom, left and right of each, [B, 4]; bottom and right lie outside the box.
    """
    height, width = images.shape[-2:]
    top, bottom, left, right = boxes.to(images.device).unsqueeze(-1).unbind(1)
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    return torch.where(inside[:, None], others, images)


def cutmix_images(
    images: Float[Tensor, "batch channels height width"], alpha: float | int, generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """CutMix of images alone, for a teacher that labels what it sees: no label is mixed (MEAL V2, arXiv 2009.08453).

    Args:
        images: [B, C, H, W].
        alpha: see :func:`draw_cutmix`.
        generator: the same.

    Raises:
        LimbeckError: alpha <= 0.
    """
    draw = draw_cutmix(len(images), (images.shape[2], images.shape[3]), alpha, generator)
    return paste_boxes(images, images[draw.partner.to(images.device)], torch.tensor([draw.box]).expand(len(images), -1))


def _partners(count: int, generator: torch.Generator, group: int) -> Tensor:
    """A permutation of the batch, int64 [B], or one of each group of neighbours."""
    if not group:
        return torch.randperm(count, generator=generator, device=generator.device)
    if count % group:
        raise LimbeckError(f"a batch of {count} is not made of groups of {group}: use multiples of {group} throughout")
    keys = torch.rand(count // group, group, generator=generator, device=generator.device)
    return (keys.argsort(1) + torch.arange(0, count, group, device=keys.device)[:, None]).flatten()


def _beta(alpha: float | int, generator: torch.Generator) -> float:
    if not alpha > 0:
        raise LimbeckError(f"alpha is {alpha}, must be above 0")
    # torch's Beta takes no generator: it seeds numpy's.
    seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
    return float(np.random.default_rng(int(seed)).beta(alpha, alpha))


def _interval(centre: int, length: int, size: int) -> tuple[int, int]:
    return max(centre - length // 2, 0), min(centre + length // 2, size)
