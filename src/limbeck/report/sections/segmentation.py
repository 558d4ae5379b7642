"""Images, what their pixels are and what the student says of them, and how well each class is covered."""

import base64
import io
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limbeck.data import Data
from limbeck.errors import LimbeckError
from limbeck.metrics.segmentation import iou, miou
from limbeck.report import figures
from limbeck.report.blocks import Chart, Charts, Gallery, Opinion, Picture, Section, Table, Text
from limbeck.report.folder import Arm, Loaded, Seed
from limbeck.report.numbers import NOTHING

_PICTURES = 6
_HEIGHT = 120  # pixels of an enlarged picture
_GOLDEN_TURN = 0.618034
_UNKNOWN = (40, 40, 40)


class _Segmented(NamedTuple):
    """What ``segmentation.safetensors`` of a stage holds."""

    confusion: Tensor
    image: Tensor
    truth: Tensor
    predicted: Tensor
    indices: Tensor
    classes: tuple[str, ...]


def segmentation(loaded: Loaded, data: Data | None) -> Section | None:
    """Bars for each class of every arm, and test images of the featured one side by side with their masks."""
    read = [(arm, [s for seed in arm.seeds if (s := _read(seed)) is not None]) for arm in loaded.arms]
    read = [(arm, found) for arm, found in read if found]
    if not read:
        return None
    classes = read[0][1][0].classes
    matrices = {arm.name: torch.stack([one.confusion for one in found]).sum(0) for arm, found in read}
    featured = next((pair for pair in read if pair[0] is loaded.featured), read[0])
    keys = figures.keys(loaded, teacher=False)
    bars = Charts((_bars(loaded, matrices, classes),), keys, wide=True)
    shown = featured[1][0]
    pictures = tuple(_picture(shown, at) for at in _chosen(len(shown.indices)))
    note = (
        f"Left to right: image, truth, student ({featured[0].name}, seed {featured[0].seeds[0].seed}). Evenly spaced "
        "test images, not picked. The squares above are the colours of the classes; dark grey: no class, not counted. "
        "IoU is that of the pixels of all test images and seeds together."
    )
    return Section("segmentation", "Pixel by pixel", (bars, Gallery(pictures, wide=True), Text(note, "note")))


def _read(seed: Seed) -> _Segmented | None:
    path: Path = seed.final.folder / "segmentation.safetensors"
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            confusion, image, truth, predicted, index = (
                file.get_tensor(name) for name in ("confusion", "image", "truth", "predicted", "index")
            )
            classes = tuple(json.loads(file.metadata()["classes"]))
        return _Segmented(confusion, image, truth, predicted, index, classes)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise LimbeckError(f"{path} does not hold what a segmentation has: {error}") from None


def _chosen(count: int) -> list[int]:
    return torch.linspace(0, count - 1, min(_PICTURES, count)).long().tolist()


def _bars(loaded: Loaded, matrices: dict[str, Tensor], classes: tuple[str, ...]) -> Chart:
    first = next(iter(matrices.values()))
    shares = first.sum(1).double() / first.sum().clamp(min=1)
    order = shares.argsort(stable=True).tolist()  # the most frequent class on top: the axis runs upwards
    arms: list[tuple[int, Arm]] = [(i, arm) for i, arm in enumerate(loaded.arms) if arm.name in matrices]
    scores = {arm.name: iou(matrices[arm.name]) for _, arm in arms}
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "x": figures.clean(100 * float(scores[arm.name][c]) for c in order),
            "y": list(range(len(order))),
            "marker": {"color": figures.colour(figures.key(i))},
            "text": [figures.plain(f"{classes[c]}, {arm.name}: {_percent(float(scores[arm.name][c]))}") for c in order],
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
        }
        for i, arm in reversed(arms)  # of a group the first arm is drawn on top
    ]
    layout = figures.figure(
        traces,
        figures.axis(ticksuffix=" %", range=[0, 100], side="top"),
        figures.axis(
            tickvals=list(range(len(order))),
            ticktext=[f'{figures.plain(classes[c])} <span style="color:{_named(c)}">■</span>  ' for c in order],
        ),
        barmode="group",
        bargap=0.3,
    )
    rows = tuple(
        (classes[c], f"{100 * float(shares[c]):.1f} %", *(_percent(float(scores[arm.name][c])) for _, arm in arms))
        for c in reversed(order)
    )
    total = ("mean", "", *(_percent(miou(matrices[arm.name])) for _, arm in arms))
    table = Table(
        "IoU of every class", ("Class", "Share of pixels", *(arm.name for _, arm in arms)), (*rows, total), folded=True
    )
    spoken = "; ".join(f"{arm.name} {_percent(miou(matrices[arm.name]))}" for _, arm in arms)
    alt = f"Intersection over union of each class, the most frequent first. Mean: {spoken}."
    height = 70 + len(classes) * (14 + 12 * len(arms))
    return Chart("Intersection over union by class", layout, alt, "", height, table)


def _picture(shown: _Segmented, at: int) -> Picture:
    image, truth, predicted = shown.image[at], shown.truth[at].long(), shown.predicted[at].long()
    known = truth >= 0
    right = float((predicted == truth)[known].float().mean()) if known.any() else math.nan
    pixels = image.expand(3, -1, -1).permute(1, 2, 0)
    # What is not counted is dark in both masks, so that they can be compared.
    masks = [_coloured(mask.where(known, -1), len(shown.classes)) for mask in (truth, predicted)]
    gap = torch.full((len(pixels), 2, 3), 255, dtype=torch.uint8)
    joined = torch.cat([pixels, gap, masks[0], gap, masks[1]], dim=1)
    name = f"Test image {int(shown.indices[at])}"
    there = ", ".join(shown.classes[c] for c in torch.unique(truth[known]).tolist())
    alt = f"{name} with {there}: {_percent(right)} of its pixels right"
    opinions = (Opinion("pixels right", _percent(right)),)
    return Picture(_png(joined), alt, name, opinions, pixelated=image.shape[-2] < _HEIGHT)


def _colour(number: int) -> tuple[int, int, int]:
    """Colours of neighbouring numbers lie far apart on the circle of hues, in three strengths."""
    import colorsys

    hue, strength = (number * _GOLDEN_TURN) % 1, number % 3
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.75, 0.5, 0.9)[strength], (0.9, 0.95, 0.65)[strength])
    return round(255 * red), round(255 * green), round(255 * blue)


def _named(number: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*_colour(number))


def _coloured(mask: Tensor, count: int) -> Tensor:
    palette = torch.tensor([*(_colour(number) for number in range(count)), _UNKNOWN], dtype=torch.uint8)
    return palette[mask]  # -1 is the last


def _png(pixels: Tensor) -> str:
    """A data URI of pixels uint8 [H, W, 3]; small ones grow by a whole factor, so that they stay square."""
    picture = Image.fromarray(pixels.numpy())
    factor = max(1, _HEIGHT // picture.height)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else NOTHING
