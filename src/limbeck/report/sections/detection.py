"""Test images with the boxes that are there and those that the student finds, and how well each class is found."""

import base64
import io
import json
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limbeck.data import Data
from limbeck.errors import LimbeckError
from limbeck.report import figures
from limbeck.report.blocks import Block, Gallery, Opinion, Picture, Section, Table, Text
from limbeck.report.folder import Loaded, Seed
from limbeck.report.numbers import NOTHING, spread

_PICTURES = 6
_HEIGHT = 200  # pixels that an enlarged picture has at least
_SHOWN = 0.5  # score from which a box is drawn
_COLOURS = {  # told apart on light and dark, and with the common kinds of colour blindness
    "orange": (230, 120, 0),
    "blue": (0, 90, 200),
    "green": (0, 140, 90),
    "pink": (210, 90, 160),
    "purple": (120, 60, 190),
    "red": (200, 30, 30),
}


class _Found(NamedTuple):
    """What ``boxes.safetensors`` of a stage holds, one tensor an image."""

    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    truth: tuple[Tensor, ...]
    truth_labels: tuple[Tensor, ...]
    indices: Tensor
    classes: tuple[str, ...]


def detection(loaded: Loaded, data: Data | None) -> Section | None:
    """Average precision by class of every arm, and test images of the featured one: truth beside student."""
    featured = next((seed for seed in loaded.featured.seeds if _file(seed).is_file()), None)
    if featured is None:
        return None
    found = _read(featured)
    data = featured.data if data is None else data
    if not torch.equal(data.test.indices, found.indices):
        raise LimbeckError("the test data is not the one the boxes were found on (its indices differ)")
    positions = torch.linspace(0, len(found.indices) - 1, min(_PICTURES, len(found.indices))).long()
    images = data.test.fetch(positions)["image"]
    pictures = tuple(_picture(found, int(at), image) for at, image in zip(positions, images, strict=True))
    colours = ", ".join(f"{name} {_colour(number)[0]}" for number, name in enumerate(found.classes))
    note = (
        f"Left the truth, right the boxes of the student with a score above {_SHOWN:g} ({loaded.featured.name}, seed "
        f"{featured.seed}). Evenly spaced test images, not picked. Colours: {colours}."
    )
    left_out = getattr(data, "left_out", 0)
    if left_out:
        note += f" {left_out} boxes without area were left out of the data."
    blocks: list[Block] = [_table(loaded, found.classes), Gallery(pictures, wide=True), Text(note, "note")]
    return Section("detection", "Box by box", tuple(blocks))


def _file(seed: Seed) -> Path:
    return seed.final.folder / "boxes.safetensors"


def _read(seed: Seed) -> _Found:
    path = _file(seed)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in ("boxes", "labels", "scores", "truth", "truth_labels")}
            counts, true_counts = file.get_tensor("count").tolist(), file.get_tensor("truth_count").tolist()
            parts = {name: part.split(true_counts if "truth" in name else counts) for name, part in found.items()}
            return _Found(
                **parts, indices=file.get_tensor("index"), classes=tuple(json.loads(file.metadata()["classes"]))
            )
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise LimbeckError(f"{path} does not hold the boxes of a detection: {error}") from None


def _table(loaded: Loaded, classes: tuple[str, ...]) -> Table:
    names = [("all classes", "map"), *((name, f"map/{name}") for name in classes)]
    return Table(
        "Average precision (IoU 0.50 to 0.95) of each class, on the test images",
        ("", *(label for label, _ in names)),
        tuple((arm.name, *(spread("map", arm.metrics.get(name, ())) for _, name in names)) for arm in loaded.arms),
        tuple(figures.key(position) for position in range(len(loaded.arms))),
    )


def _picture(found: _Found, at: int, image: Tensor) -> Picture:
    shown = found.scores[at] > _SHOWN
    truth = found.truth[at], found.truth_labels[at]
    said = found.boxes[at][shown], found.labels[at][shown]
    sides = [_drawn(image, *boxes) for boxes in (truth, said)]
    gap = torch.full((sides[0].shape[0], 8, 3), 255, dtype=torch.uint8)
    name = f"Test image {int(found.indices[at])}"
    opinions = (Opinion("truth", _counts(truth[1], found.classes)), Opinion("student", _counts(said[1], found.classes)))
    alt = f"{name}: truth {opinions[0].says}; student {opinions[1].says}"
    return Picture(_png(torch.cat([sides[0], gap, sides[1]], 1)), alt, name, opinions, pixelated=False)


def _counts(labels: Tensor, classes: tuple[str, ...]) -> str:
    numbers = labels.bincount(minlength=len(classes)).tolist()
    return ", ".join(f"{number} {name}" for number, name in zip(numbers, classes, strict=True) if number) or NOTHING


def _drawn(image: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """An enlarged image with boxes, uint8 [H, W, 3]."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)
    factor = max(1, -(-_HEIGHT // pixels.shape[0]))
    picture = Image.fromarray(pixels.numpy())
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    for box, label in zip((boxes * factor).tolist(), labels.tolist(), strict=True):
        draw.rectangle(box, outline=_colour(label)[1], width=2)
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)


def _colour(number: int) -> tuple[str, tuple[int, int, int]]:
    return list(_COLOURS.items())[number % len(_COLOURS)]


def _png(pixels: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
