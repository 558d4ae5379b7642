"""Views of images with one label a pixel: what moves the pixels moves their labels with them.

- ``none``: image and mask as they are.
- ``weak``: zoomed by a factor drawn from ``Window.scale``, a window of ``Window.size`` cut out at random, mirrored
  where allowed. What the window shows beyond the image is reflected, in image and mask alike, so that no pixel is
  without a label.
- ``strong``: the pixels of ``weak``, with brightness, contrast, saturation and hue changed, and blurred.

``weak`` and ``strong`` of one sample show the same part of the image, so a label of one is a label of the other.
Another part has a number after its name: ``weak:2``. What is random about a view depends on (seed, epoch, index,
view name) only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.data.random import derive, uniforms
from limbeck.errors import LimbeckError, nearest

KINDS = ("none", "weak", "strong")
COLOUR_DRAWS = 7
"""Uniform numbers that :func:`recolour` needs for an image."""

_MOVE_DRAWS = 4
_JITTER, _HUE = 0.2, 0.2
_SIGMA = (0.15, 1.15)
_RADIUS = 4  # pixels; more than three of the largest standard deviations

# YIQ (NTSC 1953): hue is the angle in the plane of its last two axes.
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class Window:
    """The part of an image that a view shows.

    Attributes:
        size: height and width of the view in pixels.
        scale: smallest and largest zoom; 2 shows a part of half of ``size`` enlarged, 0.5 one of twice ``size``.

    Raises:
        LimbeckError: a size or zoom that no view can have.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise LimbeckError(f"crop is {list(self.size)}, must be a height and a width of at least one pixel")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise LimbeckError(
                f"the zoom goes from {self.scale[0]} to {self.scale[1]}; it must begin above 0 and not fall"
            )


def check(view: str) -> tuple[str, str]:
    """Kind and number of a view.

    Raises:
        LimbeckError: there is no such view.
    """
    kind, colon, number = view.partition(":")
    if kind not in KINDS or (colon and not number.isdigit()):
        raise LimbeckError(f"there is no view {view!r} of masks; known: {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    return kind, number


def apply(
    views: Mapping[str, str],
    images: Tensor,
    masks: Mapping[str, Tensor],
    window: Window,
    *,
    seed: int,
    epochs: Tensor,
    indices: Tensor,
    flip: bool,
) -> dict[str, Tensor]:
    """Views of images, and the masks that belong to them.

    Args:
        views: key in the result -> name of a view; all must show the same part of the image.
        images: float [B, C, H, W] in [0, 1], on the CPU.
        masks: by name, int64 [B, H, W].
        window: size and zoom of the views.
        seed: the seed of the run.
        epochs: int64 [B].
        indices: int64 [B], stable positions of the samples in their source.
        flip: whether images may be mirrored.

    Returns:
        One image tensor a view, and the masks under their names: [B, C, h, w] and int64 [B, h, w].

    Raises:
        LimbeckError: there is no such view, or two of them show different parts, which one mask cannot label.
    """
    parts = {"none" if kind == "none" else number for kind, number in map(check, views.values())}
    if len(parts) > 1:
        raise LimbeckError(
            f"the views {', '.join(views.values())} show different parts of an image, and there is one mask: give "
            "weak and strong the same number, or take two streams"
        )

    def draw(name: str, count: int) -> Tensor:
        return torch.from_numpy(uniforms(derive(seed, "view", name), epochs.numpy(), indices.numpy(), draws=count))

    if parts != {"none"}:
        places, mirrored = _places(images.shape[-2:], window, draw(f"part:{parts.pop()}", _MOVE_DRAWS), flip)
        images = _show(images, places, mirrored, "bilinear").clamp_(0, 1)
        masks = {
            key: _show(mask.unsqueeze(1).float(), places, mirrored, "nearest").squeeze(1).long()
            for key, mask in masks.items()
        }
    shown = {}
    for key, view in views.items():
        strong = check(view)[0] == "strong"
        shown[key] = recolour(images, draw(view, COLOUR_DRAWS)) if strong else images
    return {**shown, **masks}


def _places(size: torch.Size, window: Window, draws: Tensor, flip: bool) -> tuple[Tensor, Tensor]:
    """Where in [-1, 1] each pixel of a view lies in its image, [B, h, w, 2] (x, y), and which are mirrored [B]."""
    scale = window.scale[0] + (window.scale[1] - window.scale[0]) * draws[:, 0]
    axes = []
    for length, shown, draw in zip(size, window.size, (draws[:, 1], draws[:, 2]), strict=True):
        # A window larger than the image lies anywhere around it.
        start = draw * (length - shown / scale)
        centres = start[:, None] + (torch.arange(shown) + 0.5) / scale[:, None]
        axes.append((2 * centres / length - 1).float())
    y, x = axes
    grid = torch.stack([x[:, None, :].expand(-1, window.size[0], -1), y[:, :, None].expand(-1, -1, window.size[1])], -1)
    return grid, (draws[:, 3] < 0.5) & flip


def _show(pixels: Tensor, places: Tensor, mirrored: Tensor, mode: str) -> Tensor:
    shown = F.grid_sample(pixels, places, mode=mode, padding_mode="reflection", align_corners=False)
    return torch.where(mirrored[:, None, None, None], shown.flip(-1), shown)


def recolour(images: Tensor, draws: Tensor) -> Tensor:
    """Colour jitter on four images of five and a Gaussian blur on every second, each of its own strength.

    Brightness, contrast and saturation by factors of 0.8 to 1.2, hue by up to a fifth of a turn, a standard
    deviation of 0.15 to 1.15 pixels: as DACS and DAFormer have it (arXiv 2007.08702; numbers from memory of the
    code, which draws once a batch, and turns hue in HSV rather than YIQ). Grey images keep saturation and hue.

    Args:
        images: float [B, 1 or 3, H, W] in [0, 1].
        draws: [B, COLOUR_DRAWS], uniform in [0, 1).

    Returns:
        Images of the same shape in [0, 1].
    """
    u = draws.to(images)[:, :, None, None, None].unbind(1)
    factor = [1 + _JITTER * (2 * value - 1) for value in u[1:4]]
    jittered = (images * factor[0]).clamp(0, 1)
    mean = jittered.mean((1, 2, 3), keepdim=True)
    jittered = (mean + factor[1] * (jittered - mean)).clamp(0, 1)
    if images.shape[1] == 3:
        jittered = _turn(jittered, factor[2], 2 * math.pi * _HUE * (2 * u[4] - 1)).clamp(0, 1)
    coloured = torch.where(u[0] < 0.8, jittered, images)
    return torch.where(u[5] < 0.5, _blur(coloured, _SIGMA[0] + (_SIGMA[1] - _SIGMA[0]) * u[6]), coloured)


def _turn(images: Tensor, saturation: Tensor, angle: Tensor) -> Tensor:
    """RGB images with their colours stretched and turned around the grey axis; both [B, 1, 1, 1]."""
    basis = torch.tensor(_YIQ, dtype=images.dtype, device=images.device)
    grey, i, q = torch.einsum("dc,bchw->bdhw", basis, images).split(1, dim=1)
    cosine, sine = saturation * angle.cos(), saturation * angle.sin()
    turned = torch.cat([grey, cosine * i - sine * q, sine * i + cosine * q], dim=1)
    return torch.einsum("cd,bdhw->bchw", torch.linalg.inv(basis), turned)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation [B, 1, 1, 1] of its own for each image, edges reflected."""
    batch, channels, height, width = images.shape
    radius = min(_RADIUS, height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    taps = (-0.5 * (offsets / sigma.reshape(batch, 1)).square()).exp()
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(images.reshape(1, batch * channels, height, width), (radius,) * 4, mode="reflect")
    flat = F.conv2d(flat, taps[:, None, :, None], groups=batch * channels)
    return F.conv2d(flat, taps[:, None, None, :], groups=batch * channels).view_as(images)
