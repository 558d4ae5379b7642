"""Bags of rows: the share of positives that is known of each, and the share that the student predicts."""

import statistics
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from limbeck.data import Data
from limbeck.errors import LimbeckError
from limbeck.report import figures
from limbeck.report.blocks import Chart, Charts, Section, Table, Text
from limbeck.report.folder import Loaded, Seed
from limbeck.report.numbers import spread

_FILE = "bags.safetensors"
_WAYS = {"probability": "Mean probability of a bag's rows", "counted": "Rows of a bag said to be positive"}
_MOST = 400  # bags drawn for each arm

Shares = dict[str, Tensor]


def bags(loaded: Loaded, data: Data | None) -> Section | None:
    """Predicted over true shares of the first seed of each arm, and how far they are apart over all seeds."""
    read = {
        at: found for at, arm in enumerate(loaded.arms) if (found := [s for seed in arm.seeds if (s := _read(seed))])
    }
    if not read:
        return None
    shown = {at: found[0] for at, found in read.items()}
    charts = tuple(_chart(title, way, loaded, shown) for way, title in _WAYS.items())
    keys = tuple((loaded.arms[at].name, figures.key(at)) for at in read)
    rows = [
        (
            loaded.arms[at].name,
            *(spread("error", [_distance(one[way], one["share"]) for one in found]) for way in _WAYS),
        )
        for at, found in read.items()
    ]
    same = [_distance(one["share"].mean(), one["share"]) for one in next(iter(read.values()))]
    rows.append(("the same share for every bag", *[spread("error", same)] * len(_WAYS)))
    table = Table(
        "Distance of predicted from true shares of positives, mean over bags",
        ("", *_WAYS.values()),
        tuple(rows),
        (*(key for _, key in keys), "undecided"),
    )
    sizes = sorted({int(one["size"]) for found in read.values() for one in found})
    note = (
        f"A point is a training bag ({', '.join(map(str, sizes))} rows), whose true share is all that training knows; "
        "first seed. On the dotted line both shares are equal."
    )
    if any(len(one["share"]) > _MOST for one in shown.values()):
        note += f" Of each method at most {_MOST} bags are drawn, evenly spaced."
    return Section("bags", "Bag by bag", (Charts(charts, keys, wide=True), table, Text(note, "note")))


def _read(seed: Seed) -> Shares | None:
    path: Path = seed.final.folder / _FILE
    if not path.is_file():
        return None
    try:
        held = safetensors.torch.load(path.read_bytes())
        return {name: held[name] for name in ("share", *_WAYS, "size")}
    except (SafetensorError, KeyError) as error:
        raise LimbeckError(f"{path} does not hold the shares of bags: {error}") from None


def _distance(said: Tensor, share: Tensor) -> float:
    return float((said - share).abs().mean())


def _chart(title: str, way: str, loaded: Loaded, shown: dict[int, Shares]) -> Chart:
    edge = 100 * max(float(torch.cat([one["share"], one[way]]).max()) for one in shown.values())
    traces: list[dict[str, Any]] = [
        {
            "x": [0, edge],
            "y": [0, edge],
            "mode": "lines",
            "line": {"color": figures.colour("teacher"), "width": 1.5, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    said = []
    for at, one in shown.items():
        name, chosen = (
            loaded.arms[at].name,
            torch.linspace(0, len(one["share"]) - 1, min(_MOST, len(one["share"]))).long(),
        )
        traces.append(
            {
                "x": figures.clean((100 * one["share"][chosen]).tolist()),
                "y": figures.clean((100 * one[way][chosen]).tolist()),
                "mode": "markers",
                "marker": {
                    "color": figures.colour(figures.key(at)),
                    "size": 7,
                    "opacity": 0.5,
                    "symbol": figures.symbol(at),
                },
                "hovertemplate": f"{figures.plain(name)}: true %{{x:.1f}} %, predicted %{{y:.1f}} %<extra></extra>",
            }
        )
        said.append(f"{name} {100 * statistics.fmean(one[way].tolist()):.1f} %")
    figure = figures.figure(
        traces,
        figures.axis("true share of positives", ticksuffix=" %", nticks=6),
        figures.axis("predicted share", ticksuffix=" %", nticks=6),
    )
    true = 100 * statistics.fmean(next(iter(shown.values()))["share"].tolist())
    return Chart(title, figure, f"{title} over the true share. Means: {'; '.join(said)}; in truth {true:.1f} %.")
