"""Generative models: what they make, beside the data and what their teacher makes, and what it costs."""

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from limbeck.data import Data
from limbeck.errors import LimbeckError
from limbeck.report import figures
from limbeck.report.blocks import Block, Chart, Charts, Gallery, Picture, Section, Table, Text
from limbeck.report.folder import Arm, Loaded
from limbeck.report.numbers import NOTHING, metric, spread

FILE = "generated.safetensors"
_COLUMNS = ("calls", "energy_distance", "sliced_wasserstein", "modes", "frechet_distance")
_ACROSS, _SIDE = 5, 448  # images across a grid, and its pixels: more are too small to see in the page's gallery
_ONE_STEP = "one_step"


def generation(loaded: Loaded, data: Data | None) -> Section | None:
    """Scatter plots of points or grids of images, of the first seed, and the distances."""
    made = {arm.name: found for arm in loaded.arms if (found := _made(arm)) is not None}
    if not made:
        return None
    samples: dict[str, tuple[Tensor, str]] = {}
    for at, arm in enumerate(loaded.arms):
        for name, tensor in made.get(arm.name, {}).items():
            who, single = name.removesuffix(f"_{_ONE_STEP}"), name.endswith(f"_{_ONE_STEP}")
            key = {"data": "ink", "student": figures.key(at)}.get(who, "teacher")
            title = (arm.name if who == "student" else who) + (", one call" if single else "")
            samples.setdefault(title, (tensor, key))  # data and teacher once: the arms of a comparison share them
    order = sorted(samples, key=lambda title: title != "data")
    first = samples[order[0]][0]
    shown: Block = (
        Charts(tuple(_scatter(title, *samples[title]) for title in order))
        if first.ndim == 2
        else Gallery(tuple(_grid(title, samples[title][0]) for title in order))
    )
    note = (
        "First seed. All models begin with the same noise. One call: the network asked once for the clean sample from "
        "pure noise, which is what generators of few steps compete with. Distances of images are measured on pixels, "
        "the Fréchet distance on the features of a small classifier trained on the training data."
    )
    return Section("generation", "What the models make", (_scores(loaded), shown, Text(note, "note")))


def _made(arm: Arm) -> Mapping[str, Tensor] | None:
    path = next((seed.final.folder / FILE for seed in arm.seeds), None)
    if path is None or not path.is_file():
        return None
    try:
        found = safetensors.torch.load(path.read_bytes())
        tensors = {name: found[name].float() for name in ("data", *sorted({*found} - {"data"}))}
    except (SafetensorError, KeyError) as error:
        raise LimbeckError(f"{path} does not hold samples called data, student ...: {error}") from None
    for name, tensor in tensors.items():
        if not (tensor.ndim == 4 or (tensor.ndim == 2 and tensor.shape[1] >= 1)):
            raise LimbeckError(f"{path}: {name} is {list(tensor.shape)}, expected points [N, D] or images [N, C, H, W]")
    return tensors


def _scores(loaded: Loaded) -> Table:
    rows: list[tuple[str, Mapping[str, list[float]], str]] = []
    for at, arm in enumerate(loaded.arms):
        rows += _ways(arm.name, arm.metrics, figures.key(at))
    teacher = next((arm.teacher for arm in loaded.arms if arm.teacher), None)
    if teacher:
        rows += _ways("teacher", teacher, "teacher")
    names = [name for name in _COLUMNS if any(name in values for _, values, _ in rows)]
    cells = tuple(
        (who, *(spread(name, values[name]) if name in values else NOTHING for name in names)) for who, values, _ in rows
    )
    columns = ("", *(metric(name).label for name in names))
    return Table("Test data", columns, cells, tuple(key for _, _, key in rows))


def _ways(who: str, metrics: Mapping[str, list[float]], key: str) -> list[tuple[str, Mapping[str, list[float]], str]]:
    """The model with its own sampler, and with one call where that was measured."""
    prefix = f"{_ONE_STEP}/"
    single = {name.removeprefix(prefix): values for name, values in metrics.items() if name.startswith(prefix)}
    rows: list[tuple[str, Mapping[str, list[float]], str]] = [(who, metrics, key)]
    if single:
        rows.append((f"{who}, one call", {**single, "calls": [1.0] * len(next(iter(single.values())))}, key))
    return rows


def _scatter(title: str, points: Tensor, key: str) -> Chart:
    columns = points if points.shape[1] > 1 else torch.cat([points, torch.zeros_like(points)], dim=1)
    reach = 1.3
    inside = float((columns[:, :2].abs() <= reach).all(dim=1).float().mean())
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": figures.clean(columns[:, 0].tolist()),
        "y": figures.clean(columns[:, 1].tolist()),
        "marker": {"size": 3, "opacity": 0.5, "color": figures.colour(key)},
        "hoverinfo": "skip",
    }
    square: dict[str, Any] = {"range": [-reach, reach], "showticklabels": False, "zeroline": False}
    layout = figures.figure([trace], figures.axis(**square), figures.axis(**square, scaleanchor="x", scaleratio=1))
    alt = f"{len(points)} points of {title}; {100 * inside:.0f} % lie within {reach} of the middle on both axes."
    caption = "" if inside == 1 else f"{100 * (1 - inside):.1f} % lie outside."
    return Chart(title, layout, alt, caption, 300)


def _grid(title: str, images: Tensor) -> Picture:
    """The first images as a square in one picture; pixels stay square."""
    side = min(max(1, math.isqrt(len(images))), _ACROSS)
    rows = images[: side * side].clamp(0, 1)
    _, channels, height, width = rows.shape
    sheet = rows.reshape(side, side, channels, height, width).permute(2, 0, 3, 1, 4)
    pixels = (sheet.reshape(channels, side * height, side * width) * 255).round().to(torch.uint8)
    picture = Image.fromarray((pixels[0] if channels == 1 else pixels.permute(1, 2, 0)).numpy())
    factor = max(1, _SIDE // max(picture.size))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(source, f"{len(rows)} images of {title}", title, (), pixelated=factor > 1)
