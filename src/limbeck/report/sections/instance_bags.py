"""Bags of images with what the student says of each of them, beside the truth."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from limbeck.data import Data
from limbeck.errors import LimbeckError
from limbeck.report.blocks import Gallery, Opinion, Picture, Section, Text
from limbeck.report.folder import Loaded, Seed

_FILE = "instance_bags.safetensors"
_TILE = 56  # pixels of an instance
_FRAME, _BAR, _GAP = 3, 6, 6
_COLUMNS, _MOST = 10, 30
_POSITIVE, _NEGATIVE, _UNKNOWN = (232, 118, 18), (170, 170, 170), (90, 90, 90)
_SCORE, _TRACK, _PAPER = (46, 110, 200), (214, 214, 214), (255, 255, 255)


class _Bag(NamedTuple):
    """One bag: its number and label, the student's probability, and its instances, the highest score first."""

    number: int
    label: int
    probability: float
    image: Tensor
    score: Tensor
    truth: Tensor | None


def instance_bags(loaded: Loaded, data: Data | None) -> Section | None:
    """Some test bags of the featured arm."""
    arm = loaded.featured
    found = next(((seed, bags) for seed in arm.seeds if (bags := _read(seed)) is not None), None)
    if found is None:
        return None
    seed, bags = found
    note = (
        f"The first test bags of each label ({arm.name}, seed {seed.seed}), not picked; the images of a bag by their "
        "score, the highest first. The bar is the score, from 0 to 1. "
    )
    if bags[0].truth is not None:
        note += "Orange frames: positive in truth, which training never reads; grey ones: negative. "
    note += f"Of large bags the {_MOST} images of the highest scores."
    pictures = tuple(_picture(bag) for bag in bags)
    return Section("instance-bags", "Bags and their instances", (Gallery(pictures, wide=True), Text(note, "note")))


def _read(seed: Seed) -> list[_Bag] | None:
    path: Path = seed.final.folder / _FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        sizes = held["size"].tolist()
        scores = held["score"].split(sizes)
        truths = held["truth"].split(sizes) if "truth" in held else None
        images = held["image"].split([sizes[at] for at in held["shown"].tolist()])
        bags = []
        for at, image in zip(held["shown"].tolist(), images, strict=True):
            order = scores[at].argsort(descending=True, stable=True)
            bags.append(
                _Bag(
                    int(held["index"][at]),
                    int(held["label"][at]),
                    float(held["logits"][at].softmax(-1)[1]),
                    image[order],
                    scores[at][order],
                    None if truths is None else truths[at][order],
                )
            )
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise LimbeckError(f"{path} does not hold what a report of bags shows: {error}") from None
    return bags


def _picture(bag: _Bag) -> Picture:
    said = "positive" if bag.probability > 0.5 else "negative"
    label = ("negative", "positive")[bag.label]
    name = f"Test bag {bag.number}, {len(bag.score)} images"
    opinions = [Opinion("truth", label), Opinion("student", said, f"{100 * bag.probability:.0f} %", said == label)]
    alt = f"{name}: truth {label}, student {100 * bag.probability:.0f} % positive"
    if bag.truth is not None:
        ranks = (torch.nonzero(bag.truth == 1)[:, 0] + 1).tolist()
        placed = ", ".join(map(str, ranks)) if ranks else "none"
        opinions.append(Opinion("positives", f"rank {placed}" if ranks else placed))
        alt += f"; positive images by rank of their score: {placed}"
    return Picture(_png(_drawn(bag)), alt, name, tuple(opinions), pixelated=False)


def _drawn(bag: _Bag) -> Tensor:
    """Pixels uint8 [H, W, 3]: rows of framed images with bars below."""
    count = min(_MOST, len(bag.score))
    images = F.interpolate(bag.image[:count].float(), (_TILE, _TILE), mode="nearest").round().to(torch.uint8)
    width, height = _TILE + 2 * _FRAME, _TILE + 2 * _FRAME + _BAR + 2
    rows = -(-count // _COLUMNS)
    page = _filled(rows * (height + _GAP) - _GAP, min(count, _COLUMNS) * (width + _GAP) - _GAP, _PAPER)
    for place in range(count):
        row, column = divmod(place, _COLUMNS)
        top, left = row * (height + _GAP), column * (width + _GAP)
        kind = _UNKNOWN if bag.truth is None else (_NEGATIVE, _POSITIVE)[int(bag.truth[place])]
        tile = _filled(height, width, _PAPER)
        tile[: _TILE + 2 * _FRAME] = torch.tensor(kind, dtype=torch.uint8)
        tile[_FRAME : _FRAME + _TILE, _FRAME : _FRAME + _TILE] = images[place].expand(3, -1, -1).permute(1, 2, 0)
        tile[-_BAR:] = torch.tensor(_TRACK, dtype=torch.uint8)
        tile[-_BAR:, : round(width * float(bag.score[place]))] = torch.tensor(_SCORE, dtype=torch.uint8)
        page[top : top + height, left : left + width] = tile
    return page


def _filled(height: int, width: int, colour: tuple[int, int, int]) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8).expand(height, width, 3).clone()


def _png(pixels: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
