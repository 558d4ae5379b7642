"""A data set that was made, not collected: images by chunks in a folder, and their use in the place of real ones."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limbeck.data.pixels import read
from limbeck.data.places import existing
from limbeck.data.samples import ImageData, Samples
from limbeck.errors import LimbeckError

FORMAT_VERSION = 1
INDEX = "data.json"


def synthetic(folder: str, real: dict[str, Any], seed: int) -> ImageData:
    """Images that a method made, as training data; validation and test are those of the real data.

    Args:
        folder: the folder of the stage that made them, such as runs/cv-dd-NAME/seed-0/recover.
        real: the data block they were made from, such as {name: torchvision, dataset: FashionMNIST}.
        seed: of the splits of the real data.

    Raises:
        LimbeckError: the folder holds no finished set, the real data cannot be opened, or classes or shapes differ.
    """
    from limbeck.data.load import load  # load opens sources, and this is one

    train = read_synthetic(existing(folder))
    block = dict(real)
    if not isinstance(block.get("name"), str):
        raise LimbeckError(f"data.real is {real!r}; it must be a data block with a name")
    data = load(block.pop("name"), seed, **block)
    if not isinstance(data, ImageData):
        raise LimbeckError(f"data.real {real['name']!r} is no image classification data")
    if data.classes != train.classes or data.train.shape != train.shape:
        raise LimbeckError(
            f"{folder} holds {list(train.shape)} images of {list(train.classes)}, "
            f"the real data {list(data.train.shape)} images of {list(data.classes)}"
        )
    return dataclasses.replace(data, train=train, unlabeled=None)


def read_synthetic(folder: Path) -> Samples:
    """The samples of a finished set, in memory where they fit.

    Raises:
        LimbeckError: the folder holds none, or a damaged one.
    """
    path = folder / INDEX
    if not path.is_file():
        raise LimbeckError(f"{folder} holds no {INDEX}: no data set was made there, or its making was interrupted")
    index = json.loads(path.read_text(encoding="utf-8"))
    if index.get("format_version") != FORMAT_VERSION:
        raise LimbeckError(f"{path} has format_version {index.get('format_version')!r}, this reads {FORMAT_VERSION}")
    places: list[tuple[Path, int]] = []
    labels: list[Tensor] = []
    for name in index["chunks"]:
        chunk = read_chunk(folder / name, "label")
        labels.append(chunk)
        places += [(folder / name, row) for row in range(len(chunk))]
    images = read(functools.partial(_image, places), len(places), functools.partial(_where, places))
    return Samples(images, torch.cat(labels), tuple(index["classes"]))


def read_chunk(path: Path, name: str, row: int | None = None) -> Tensor:
    """One tensor of a chunk (``image``, ``label``, ``curve``), or one row of it.

    Raises:
        LimbeckError: the file is not there or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found: Tensor = file.get_tensor(name) if row is None else file.get_slice(name)[row]
            return found
    except (OSError, SafetensorError) as error:
        raise LimbeckError(f"{path} cannot be read ({error}); delete it and run the same command again") from None


def _image(places: list[tuple[Path, int]], row: int) -> Tensor:
    return read_chunk(places[row][0], "image", places[row][1])


def _where(places: list[tuple[Path, int]], row: int) -> str:
    return f"{places[row][0]}, image {places[row][1]}"
