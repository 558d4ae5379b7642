"""Image files with mask files of the same name."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limbeck.data.folder import SUFFIXES
from limbeck.data.mask_samples import LazyMasks, Masks, MemoryMasks, check_mask
from limbeck.data.pixels import IN_MEMORY_BYTES, Images, read, to_pixels
from limbeck.errors import LimbeckError

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class _Files:
    """Row -> file, decoded and brought to one size; a class, since workers may pickle it."""

    def __init__(self, paths: list[Path], size: tuple[int, int] | None) -> None:
        self.paths, self.size = paths, size

    def name(self, row: int) -> str:
        return str(self.paths[row])

    def open(self, row: int, resample: Image.Resampling, mode: str | None) -> Image.Image:
        try:
            with Image.open(self.paths[row]) as image:
                picture = image.copy() if mode is None else image.convert(mode)
        except _DAMAGE as error:
            raise LimbeckError(f"{self.name(row)}: not a readable image ({error}); replace or remove it") from error
        if self.size is None or picture.size == self.size[::-1]:
            return picture
        return picture.resize(self.size[::-1], resample)


class _Pictures(_Files):
    def __call__(self, row: int) -> Tensor:
        return to_pixels(self.open(row, Image.Resampling.BILINEAR, "RGB"), self.name(row))


class _MaskFiles(_Files):
    def __init__(self, paths: list[Path], size: tuple[int, int] | None, num_classes: int, ignore: list[int]) -> None:
        super().__init__(paths, size)
        self.num_classes, self.ignore = num_classes, ignore

    def __call__(self, row: int) -> Tensor:
        picture = self.open(row, Image.Resampling.NEAREST, None)
        if picture.mode not in ("L", "P", "I", "I;16"):
            raise LimbeckError(f"{self.name(row)}: mode {picture.mode}, expected one class number a pixel (L, P or I)")
        mask = torch.from_numpy(np.asarray(picture).astype(np.int64))
        mask = mask.masked_fill(torch.isin(mask, torch.tensor(self.ignore, dtype=torch.int64)), -1)
        check_mask(mask, self.num_classes, self.name(row))
        return mask


def read_pairs(
    images: Path, masks: Path, num_classes: int, ignore: list[int], size: tuple[int, int] | None
) -> tuple[Images, Masks]:
    """The images of a folder as RGB, and their masks from another one, in memory where they fit.

    Args:
        images: a folder of image files.
        masks: a folder of PNG files of the same stems, one class number a pixel.
        num_classes: C.
        ignore: numbers of pixels without a class.
        size: height and width to which images (bilinear, antialiased) and masks (nearest) are brought.

    Raises:
        LimbeckError: a folder is missing or empty, an image has no mask, or a file is not what it should be.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise LimbeckError(f"there is no folder {folder}")
    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise LimbeckError(f"{images} holds no images ({' '.join(sorted(SUFFIXES))})")
    pairs = [masks / f"{path.stem}.png" for path in paths]
    for path, pair in zip(paths, pairs, strict=True):
        if not pair.is_file():
            raise LimbeckError(f"{path} has no mask: there is no {pair}")
    decode = _MaskFiles(pairs, size, num_classes, ignore)
    pictures = _Pictures(paths, size)
    # Pillow lets go of the interpreter while it decodes.
    opened = read(pictures, len(paths), pictures.name, threads=min(8, os.cpu_count() or 1))
    shape = (opened.shape[1], opened.shape[2])
    lazy = LazyMasks(decode, len(paths), shape, decode.name)
    if 2 * len(paths) * shape[0] * shape[1] > IN_MEMORY_BYTES:
        return opened, lazy
    return opened, MemoryMasks(lazy.take(torch.arange(len(paths))), num_classes, str(masks))
