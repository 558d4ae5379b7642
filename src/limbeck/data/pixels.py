"""Images as tensors: conversion, checks, and the ways to keep them (in memory, or decoded when asked for)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limbeck.errors import LimbeckError

IN_MEMORY_BYTES = 1 << 30
"""Images that take no more than this are decoded once, before training: that checks them all, too."""

FLOAT_BYTES = 64 << 20
"""uint8 images that fit into this as float32 are converted once instead of in every batch."""


class Images(Protocol):
    """Images of one shape, by row."""

    shape: tuple[int, int, int]
    """Channels, height, width."""

    in_memory: bool
    """Whether taking an image costs no decoding."""

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> Tensor:
        """Fresh float32 images [B, C, H, W] in [0, 1] of the ``rows``, int64 [B]."""
        ...


class Memory:
    """Images kept as one tensor.

    Args:
        pixels: [N, C, H, W], uint8 or float32 in [0, 1], with one or three channels.
        where: what the images are, for error messages.

    Raises:
        LimbeckError: a wrong shape or type, no images, or a value that is not finite or outside [0, 1].
    """

    in_memory = True

    def __init__(self, pixels: Tensor, where: str = "the images") -> None:
        if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise LimbeckError(f"{where}: shape {tuple(pixels.shape)}, expected [N, 1 or 3, height, width]")
        if len(pixels) == 0:
            raise LimbeckError(f"{where}: there are no images")
        if pixels.dtype.is_floating_point:
            pixels = pixels.float()
            inside = ((pixels >= 0) & (pixels <= 1)).flatten(1).all(1)  # false for NaN too
            if not inside.all():
                index = int(torch.nonzero(~inside)[0])
                check_range(pixels[index], f"{where}, index {index}")
        elif pixels.dtype != torch.uint8:
            raise LimbeckError(f"{where}: type {pixels.dtype}, expected uint8 (0 to 255) or float in [0, 1]")
        self.shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        small = pixels.dtype == torch.uint8 and 4 * pixels.numel() <= FLOAT_BYTES
        self.pixels = (pixels.float() / 255 if small else pixels).contiguous()

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: Tensor) -> Tensor:
        """See :class:`Images`."""
        taken = self.pixels.index_select(0, rows)
        if taken.dtype == torch.float32:
            return taken
        return torch.from_numpy(np.divide(taken.numpy(), np.float32(255), dtype=np.float32))


class Lazy:
    """Images decoded every time they are asked for.

    Args:
        decode: row -> one image [C, H, W], uint8 or float32 in [0, 1]; picklable, for workers that are
            spawned.
        count: how many there are.
        shape: what every image must come out as.
        where: row -> what that image is, for error messages.
    """

    in_memory = False

    def __init__(
        self,
        decode: Callable[[int], Tensor],
        count: int,
        shape: tuple[int, int, int],
        where: Callable[[int], str],
    ) -> None:
        self.decode, self.count, self.shape, self.where = decode, count, shape, where

    def __len__(self) -> int:
        return self.count

    def take(self, rows: Tensor) -> Tensor:
        """See :class:`Images`."""
        batch = torch.empty((len(rows), *self.shape))
        for slot, row in enumerate(rows.tolist()):
            image = self.decode(row)
            if tuple(image.shape) != self.shape:
                raise _shapes_differ(self.where(row), image, self.where(0), self.shape)
            batch[slot] = image.float() / 255 if image.dtype == torch.uint8 else image
        return batch


class Joined:
    """Several sets of images of one shape, one after the other."""

    def __init__(self, parts: list[Images]) -> None:
        self.parts = parts
        self.shape = parts[0].shape
        self.in_memory = all(part.in_memory for part in parts)
        self.starts = torch.tensor([0] + [len(part) for part in parts]).cumsum(0)
        for part in parts:
            if part.shape != self.shape:
                raise LimbeckError(f"cannot join images of shapes {self.shape} and {part.shape}")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, rows: Tensor) -> Tensor:
        """See :class:`Images`."""
        batch = torch.empty((len(rows), *self.shape))
        owner = torch.searchsorted(self.starts, rows, right=True) - 1
        for number, part in enumerate(self.parts):
            mine = torch.nonzero(owner == number)[:, 0]
            if len(mine):
                batch[mine] = part.take(rows[mine] - self.starts[number])
        return batch


def read(
    decode: Callable[[int], Tensor],
    count: int,
    where: Callable[[int], str],
    *,
    threads: int = 1,
    limit: int = IN_MEMORY_BYTES,
) -> Images:
    """Decode all images into memory where they fit, else keep them lazy.

    Args:
        decode: row -> one image [C, H, W].
        count: how many there are, at least one.
        where: row -> what that image is, for error messages.
        threads: how many threads decode; more than one only where ``decode`` allows it.
        limit: bytes that decoded images may take.

    Raises:
        LimbeckError: an image cannot be decoded, or its shape or type differs from the first one's.
    """
    first = decode(0)
    shape = (first.shape[0], first.shape[1], first.shape[2])
    if count * first.numel() * first.element_size() > limit:
        return Lazy(decode, count, shape, where)
    pixels = torch.empty((count, *shape), dtype=first.dtype)

    def fill(row: int) -> None:
        image = decode(row)
        if image.shape != first.shape:
            raise _shapes_differ(where(row), image, where(0), shape)
        if image.dtype != first.dtype:
            raise LimbeckError(f"{where(row)} is {image.dtype}, {where(0)} is {first.dtype}: use one type")
        pixels[row] = image

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(fill, range(count)):
                pass
    else:
        for row in range(count):
            fill(row)
    return Memory(pixels)


def to_pixels(image: Any, where: str) -> Tensor:
    """One image as a tensor [C, H, W], uint8 or float32 in [0, 1].

    Args:
        image: a PIL image; an array [H, W] or [H, W, C]; or a tensor [H, W] or [C, H, W]. An array [C, H, W]
            is recognised where its last axis cannot be channels. Alpha channels are dropped.
        where: what the image is, for error messages.

    Raises:
        LimbeckError: an unknown kind of image, or values that are not finite or outside their range.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image, where)
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[-1] in (1, 3):
            image = np.moveaxis(image, -1, 0)
        image = torch.from_numpy(np.array(image))  # a copy: the array may be read-only
    if not isinstance(image, Tensor):
        raise LimbeckError(f"{where}: a {type(image).__name__} is no image; give a PIL image, array or tensor")
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise LimbeckError(f"{where}: shape {tuple(image.shape)}, expected one or three channels")
    if image.dtype.is_floating_point:
        image = image.float()
        check_range(image, where)
    elif image.dtype != torch.uint8:
        raise LimbeckError(f"{where}: type {image.dtype}, expected uint8 (0 to 255) or float in [0, 1]")
    return image


def check_range(image: Tensor, where: str) -> None:
    """Refuse a float image with values that are not finite or outside [0, 1].

    Raises:
        LimbeckError: naming ``where`` and the values.
    """
    if not torch.isfinite(image).all():
        raise LimbeckError(f"{where}: the image has values that are NaN or infinite")
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        hint = "divide by 255, or give uint8" if low >= 0 and high <= 255 else "give images before normalisation"
        raise LimbeckError(f"{where}: float image with values from {low:.4g} to {high:.4g}, expected [0, 1]: {hint}")


def is_grey(mode: str) -> bool:
    """Whether a PIL image of this mode has one channel without its alpha."""
    return mode in ("1", "L", "LA", "La") or mode.startswith("I;16")


def _from_pil(image: Image.Image, where: str) -> Tensor:
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 rather than scale them
        return torch.from_numpy((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))[None]
    if image.mode in ("I", "F"):
        raise LimbeckError(f"{where}: images of mode {image.mode!r} have no fixed range; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    array = np.array(image.convert("L" if is_grey(image.mode) else "RGB"))
    return torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _shapes_differ(where: str, image: Tensor, first: str, shape: tuple[int, ...]) -> LimbeckError:
    return LimbeckError(
        f"images of different shapes: {where} is {list(image.shape)}, {first} is {list(shape)} "
        "(channels, height, width); bring them to one size first, or give size="
    )
