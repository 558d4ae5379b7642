"""Decoding images with Pillow: files and encoded bytes, one size, errors that name the file."""

import os
import struct
import zlib
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from limbeck.data.pixels import Images, is_grey, read, to_pixels
from limbeck.errors import LimbeckError

# What Pillow raises for files that are damaged, by format and place of the damage.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def fit(image: Image.Image, size: int | None, where: str) -> Image.Image:
    """Upright, and with ``size`` the shorter side brought to that many pixels and the centre square cut out.

    Raises:
        LimbeckError: an image without a fixed range of values, naming ``where``.
    """
    image = ImageOps.exif_transpose(image)
    if size is None or image.size == (size, size):
        return image
    if image.mode not in ("L", "RGB"):  # palettes and single bits cannot be interpolated
        image = _plain(image, where)
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BILINEAR)


def _plain(image: Image.Image, where: str) -> Image.Image:
    pixels = to_pixels(image, where)
    return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except _DAMAGE as error:
        raise LimbeckError(f"{path}: not a readable image ({error}); replace or remove the file") from error


class _FileDecoder:
    """Row -> image file as a tensor [C, H, W].

    Calling it raises :class:`LimbeckError` for a file that cannot be read. A class, since workers may pickle it.

    Args:
        paths: the files.
        size: see :func:`fit`.
        channels: 1 or 3.
    """

    def __init__(self, paths: list[Path], size: int | None, channels: int) -> None:
        self.paths, self.size, self.channels = paths, size, channels

    def name(self, row: int) -> str:
        return str(self.paths[row])

    def __call__(self, row: int) -> Tensor:
        path = self.paths[row]
        with _open(path) as image:
            try:
                pixels = to_pixels(fit(image, self.size, str(path)), str(path))
            except _DAMAGE as error:
                raise LimbeckError(
                    f"{path}: the image is damaged or cut short ({error}); replace or remove the file"
                ) from error
        return pixels.expand(self.channels, -1, -1) if len(pixels) < self.channels else pixels


def channels_of(paths: list[Path]) -> int:
    """1 where every file is grey, else 3; reads the heads of the files only.

    Raises:
        LimbeckError: a file is no image.
    """
    channels = 1
    for path in paths:
        with _open(path) as image:
            if not is_grey(image.mode):
                channels = 3
    return channels


def read_files(paths: list[Path], size: int | None, channels: int) -> Images:
    """The images of these files, in memory where they fit.

    Raises:
        LimbeckError: a file is damaged, or without ``size`` of another shape than the first.
    """
    decode = _FileDecoder(paths, size, channels)
    # Pillow lets go of the interpreter while it decodes.
    return read(decode, len(paths), decode.name, threads=min(8, os.cpu_count() or 1))


def resize(pixels: Tensor, size: int | None) -> Tensor:
    """Images [N, C, H, W] fitted to ``size`` as :func:`fit` does, the type kept."""
    height, width = pixels.shape[-2:]
    if size is None or (height, width) == (size, size):
        return pixels
    from torchvision.transforms.v2 import functional

    shorter = min(height, width)
    square = functional.center_crop(pixels, [shorter, shorter])
    batches = [functional.resize(part, [size, size], antialias=True) for part in square.split(1024)]
    return torch.cat(batches)
