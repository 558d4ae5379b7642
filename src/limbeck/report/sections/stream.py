"""A model on a stream of changing domains: error batch by batch, by round and by domain."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limbeck.data import Data
from limbeck.errors import LimbeckError
from limbeck.report import figures
from limbeck.report.blocks import Chart, Charts, Section, Table, Text
from limbeck.report.folder import Loaded

_FILE = "stream.safetensors"
_NAMED = 24  # more bands than this are too narrow for their names


@dataclass(frozen=True)
class _Line:
    """One arm: percentages of error by batch, by visit of a domain, by round and by domain; means over seeds."""

    arm: str
    key: str
    batches: list[float]
    visits: list[float]
    rounds: list[float]
    domains: list[float]


@dataclass(frozen=True)
class _Course:
    """The stream itself: ``starts[v]`` is the first batch of visit v, ``names[v]`` its domain."""

    starts: list[int]
    names: list[str]
    batches: int


def stream(loaded: Loaded, data: Data | None) -> Section | None:
    """Error over the stream with a band a visit of a domain, then by round and by domain."""
    lines: list[_Line] = []
    course: _Course | None = None
    for position, arm in enumerate(loaded.arms):
        files = [path for seed in arm.seeds if (path := seed.final.folder / _FILE).is_file()]
        if not files:
            continue
        found = [_read(path) for path in files]
        if course is not None and found[0][0] != course:
            continue  # another stream cannot be drawn over the first
        course = course or found[0][0]
        shares = [_shares(tensors, len(course.starts)) for of, tensors in found if of == course]
        means = [
            [100 * statistics.fmean(values) for values in zip(*rows, strict=True)] for rows in zip(*shares, strict=True)
        ]
        lines.append(_Line(arm.name, figures.key(position), *means))
    if course is None:
        return None
    domains = list(dict.fromkeys(course.names))
    over = _over_time(lines, course)
    keys = tuple((line.arm, line.key) for line in lines)
    blocks = [Charts((over,), keys, wide=True)]
    if len(lines[0].rounds) > 1:
        blocks.append(Charts((_by_round(lines),), keys))
    table = Table(
        "Error in every domain, mean over rounds and seeds",
        ("Domain", *(line.arm for line in lines)),
        tuple((name, *(f"{line.domains[row]:.1f} %" for line in lines)) for row, name in enumerate(domains)),
    )
    note = "Answers are given while adapting: a batch is answered before it is learned, and seen once."
    return Section("stream", "Over the stream", (*blocks, table, Text(note, "note")))


def _read(path: Path) -> tuple[_Course, dict[str, Tensor]]:
    """A pass and the course of its stream.

    Raises:
        LimbeckError: the file is damaged or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = ("logits", "label", "domain", "round", "update")
            tensors = {name: file.get_tensor(name) for name in names}
            order = json.loads((file.metadata() or {})["order"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise LimbeckError(f"{path} does not hold the answers to a stream: {error}") from None
    update = tensors["update"]
    visit = tensors["round"] * len(order) + tensors["domain"]
    first = torch.full((int(visit.max()) + 1,), int(update.max())).scatter_reduce(0, visit, update, "amin")
    course = _Course(first.tolist(), [order[v % len(order)] for v in range(len(first))], int(update.max()) + 1)
    # The same domain may come twice in a round.
    numbers = {name: number for number, name in enumerate(dict.fromkeys(course.names))}
    kind = torch.tensor([numbers[name] for name in order])[tensors["domain"]]
    wrong = (tensors["logits"].argmax(-1) != tensors["label"]).double()
    return course, {"wrong": wrong, "update": update, "visit": visit, "round": tensors["round"], "kind": kind}


def _shares(tensors: dict[str, Tensor], visits: int) -> list[list[float]]:
    """Shares of wrong answers by batch, visit, round and domain."""
    found = []
    for name in ("update", "visit", "round", "kind"):
        group = tensors[name]
        total = torch.bincount(group, tensors["wrong"])
        found.append((total / torch.bincount(group)).tolist())
    return found


def _over_time(lines: Sequence[_Line], course: _Course) -> Chart:
    traces: list[dict[str, Any]] = []
    ends = [*course.starts[1:], course.batches]
    for line in lines:
        colour = figures.colour(line.key)
        batches = list(range(1, course.batches + 1))
        traces.append(_trace(batches, line.batches, colour, 1, 0.35) | {"hoverinfo": "skip"})
        # One level a visit: the mean of its batches, broken where the domain changes.
        x: list[float | None] = []
        y: list[float | None] = []
        for start, end, value in zip(course.starts, ends, line.visits, strict=True):
            x += [start + 0.5, end + 0.5, None]
            y += [*figures.clean([value, value]), None]
        level = _trace(x, y, colour, 2.6, 1)
        traces.append(level | {"name": figures.plain(line.arm), "hovertemplate": "%{y:.1f} %"})
    bands = [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": start + 0.5,
            "x1": end + 0.5,
            "y0": 0,
            "y1": 1,
            "line": {"width": 0},
            "fillcolor": figures.colour("grid"),
            "opacity": 0.5,
            "layer": "below",
        }
        for number, (start, end) in enumerate(zip(course.starts, ends, strict=True))
        if number % 2 == 0
    ]
    names = [
        {
            "x": (start + end) / 2 + 0.5,
            "y": 1,
            "xref": "x",
            "yref": "paper",
            "yanchor": "bottom",
            "text": figures.plain(name.replace("_", " ")),
            "textangle": -60,
            "xanchor": "left",
            "showarrow": False,
            "font": {"size": 11, "color": figures.colour("muted")},
        }
        for start, end, name in zip(course.starts, ends, course.names, strict=True)
    ]
    layout = figures.figure(
        traces,
        figures.axis("batch", nticks=8, showgrid=False, range=[0.5, course.batches + 0.5]),
        figures.axis(ticksuffix=" %", nticks=6, rangemode="tozero"),
        shapes=bands,
        annotations=names if len(names) <= _NAMED else [],
        hovermode="x unified",
        margin={"l": 8, "r": 40, "t": 96 if len(names) <= _NAMED else 8, "b": 8},
    )
    said = "; ".join(f"{line.arm} {statistics.fmean(line.batches):.1f} %" for line in lines)
    caption = "Thin: every batch. Strong: the mean of each visit of a domain; bands are visits."
    return Chart("Error over the stream", layout, f"Mean error over the stream: {said}.", caption, height=400)


def _by_round(lines: Sequence[_Line]) -> Chart:
    rounds = list(range(1, len(lines[0].rounds) + 1))
    traces = []
    for position, line in enumerate(lines):
        trace = _trace(rounds, figures.clean(line.rounds), figures.colour(line.key), 2.4, 1)
        trace["mode"] = "lines+markers"
        trace["marker"] |= {"size": 9, "symbol": figures.symbol(position)}
        traces.append(trace | {"name": figures.plain(line.arm), "hovertemplate": "%{y:.1f} %"})
    layout = figures.figure(
        traces,
        figures.axis("round", tickvals=rounds, showgrid=False),
        figures.axis(ticksuffix=" %", nticks=6),
        hovermode="x unified",
    )
    said = "; ".join(f"{line.arm} from {line.rounds[0]:.1f} to {line.rounds[-1]:.1f} %" for line in lines)
    return Chart("Error by round", layout, f"Error of the first and the last round: {said}.", height=260)


def _trace(x: Sequence[Any], y: Sequence[Any], colour: str, width: float, opacity: float) -> dict[str, Any]:
    return {
        "x": list(x),
        "y": list(y),
        "mode": "lines",
        "line": {"color": colour, "width": width},
        "marker": {"color": colour},
        "opacity": opacity,
    }
