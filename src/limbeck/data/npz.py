"""NumPy archives of images and labels."""

import zipfile
import zlib
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from limbeck.data.files import resize
from limbeck.data.pixels import Memory
from limbeck.data.places import existing
from limbeck.data.samples import Samples, Source, check_labels
from limbeck.data.splits import hold_out
from limbeck.errors import LimbeckError

_KEYS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "validation": (("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}


def npz(path: str, size: int | None = None, flip: bool = True) -> Source:
    """A NumPy archive with the arrays of MedMNIST or Keras.

    Arrays: ``train_images``, ``train_labels`` and the same with ``val_`` and ``test_``; or ``x_train``,
    ``y_train`` and the same with ``_val`` and ``_test``. Images are [N, H, W], [N, H, W, C] or [N, C, H, W],
    uint8 or float in [0, 1]; labels [N] or [N, 1]. ``classes``, where present, holds their names. Without
    test arrays a fixed, stratified fifth is held out, the same in every run.

    Args:
        path: the file; ``~`` and variables such as ``$LIMBECK_DATA`` are filled in.
        size: images are resized to this many pixels a side, from the centre square; null leaves them as they
            are.
        flip: whether a mirrored image is still an image of its class.

    Raises:
        LimbeckError: the file or an array is missing, or an array is not what it should be.
    """
    file = existing(path)
    try:
        with file.open("rb") as opened, NpzFile(opened) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise LimbeckError(f"{file}: not a readable NumPy archive (.npz) of plain arrays ({error})") from error
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for part, variants in _KEYS.items():
        for x, y in variants:
            if x in arrays and y in arrays:
                pairs[part] = _images(arrays[x], f"{file}, {x}"), _labels(arrays[y], f"{file}, {y}")
    if "train" not in pairs:
        raise LimbeckError(f"{file} holds the arrays {sorted(arrays)}, expected train_images and train_labels")
    count = int(max(labels.max() for _, labels in pairs.values())) + 1
    classes = [str(name) for name in arrays["classes"]] if "classes" in arrays else [str(n) for n in range(count)]
    parts = {}
    for part, (images, labels) in pairs.items():
        check_labels(labels, classes, f"{file}, {part}")
        parts[part] = Samples(Memory(resize(images, size), f"{file}, {part}"), labels, classes)
    if "test" not in parts:
        parts["train"], parts["test"] = hold_out(parts["train"], 0.2)
    return Source(parts["train"], parts["test"], parts.get("validation"), flip)


def _images(array: np.ndarray[Any, Any], where: str) -> Tensor:
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[-1] in (1, 3):
        array = np.moveaxis(array, -1, 1)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or len(array) == 0:
        raise LimbeckError(f"{where}: shape {array.shape}, expected [N, height, width] with one or three channels")
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype != np.uint8:
        raise LimbeckError(f"{where}: type {array.dtype}, expected uint8 (0 to 255) or float in [0, 1]")
    pixels = torch.from_numpy(np.ascontiguousarray(array))
    return Memory(pixels, where).pixels if array.dtype.kind == "f" else pixels  # checked before any resizing


def _labels(array: np.ndarray[Any, Any], where: str) -> Tensor:
    flat = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or len(flat) == 0:
        raise LimbeckError(f"{where}: shape {array.shape}, expected one label an image, [N] or [N, 1]")
    if flat.dtype.kind not in "iu":
        raise LimbeckError(f"{where}: type {array.dtype}, expected whole numbers")
    if flat.min() < 0:
        index = int(flat.argmin())
        raise LimbeckError(f"{where}: label {int(flat[index])} at index {index} is out of range, expected 0, 1, 2 ...")
    return torch.from_numpy(flat.astype(np.int64))
