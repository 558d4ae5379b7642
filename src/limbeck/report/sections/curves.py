"""Training as it went: loss terms and validation metrics over updates."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from limbeck.data import Data
from limbeck.metrics.directions import BETTER
from limbeck.report import figures
from limbeck.report.blocks import Block, Chart, Charts, Section, Text
from limbeck.report.folder import Curve, Loaded, Stage
from limbeck.report.numbers import METRICS, metric

_UNDRAWN = METRICS.keys() - BETTER.keys() | {"aurc"}  # close relatives of others; metrics.csv holds them all
PSEUDO_LABELS = ("coverage", "precision", "used")
_POINTS = 300  # a line needs no more on a screen; the page stays small


@dataclass(frozen=True)
class Line:
    """The curve of one seed of one arm."""

    arm: str
    key: str
    curve: Curve


def curves(loaded: Loaded, data: Data | None) -> Section | None:
    """The final stage of every arm together, then the stages before it."""
    blocks: list[Block] = []
    thinned = False
    groups = list(_groups(loaded))
    for number, (title, stages) in enumerate(groups):
        lines = [Line(arm, key, curve) for arm, key, stage in stages for curve in stage.curves]
        if number == 0:
            lines = [line for line in lines if not of_pseudo_labels(line.curve)]
        if not lines:
            continue
        thinned = thinned or any(len(line.curve.updates) > _POINTS for line in lines)
        charts = tuple(_charts(lines))
        teacher = any(line.curve.split == "teacher" for line in lines)
        arms = dict.fromkeys((line.arm, line.key) for line in lines)
        keys = (*arms, ("teacher", "teacher")) if teacher else tuple(arms)
        if title:
            blocks.append(Text(title, "heading"))
        blocks.append(Charts(charts, keys))
    if not blocks:
        return None
    note = "Thin lines are seeds, the strong line their mean."
    if len(loaded.arms) > 1:
        note += " Training losses of different methods are different quantities; validation curves compare."
    if thinned:
        note += f" Long curves are drawn as {_POINTS} means of neighbouring points."
    return Section("curves", "Training", (*blocks, Text(note, "note")))


def _groups(loaded: Loaded) -> Iterator[tuple[str, list[tuple[str, str, Stage]]]]:
    final, earlier = [], dict[str, list[tuple[str, str, Stage]]]()
    for position, arm in enumerate(loaded.arms):
        for seed in arm.seeds:
            for stage in seed.stages:
                row = (arm.name, figures.key(position), stage)
                if stage.name == seed.run["final"]:
                    final.append(row)
                else:
                    earlier.setdefault(stage.name, []).append(row)
    names = list(dict.fromkeys(stage.name for _, _, stage in final))
    yield (f"Final stage: {', '.join(names)}" if earlier else ""), final
    for name, rows in earlier.items():
        yield f"Stage before: {name}", rows


def of_pseudo_labels(curve: Curve) -> bool:
    """Whether a curve is of pseudo labels in training; those of the final stage have a section of their own."""
    return curve.split == "train" and curve.name.split("/")[-1] in PSEUDO_LABELS


def _charts(lines: Sequence[Line]) -> Iterator[Chart]:
    """Validation first, then the loss and its terms, then whatever else was logged."""
    names = list(dict.fromkeys((line.curve.split, line.curve.name) for line in lines))
    order = [n for n in names if n[0] == "validation" and n[1] not in _UNDRAWN]
    order += [n for n in names if n[0] == "train" and n[1].split("/")[0] == "loss"]
    order += [n for n in names if n not in order and n[0] not in ("teacher", "validation")]
    for split, name in order:
        shown = [line for line in lines if (line.curve.split, line.curve.name) == (split, name)]
        teacher = [line for line in lines if (line.curve.split, line.curve.name) == ("teacher", name)]
        yield chart(split, name, shown, teacher if split == "validation" else [])


def chart(split: str, name: str, lines: Sequence[Line], teacher: Sequence[Line] = (), over: str = "update") -> Chart:
    """One quantity over updates (or repeats): thin lines for the seeds of an arm, a strong one for their mean."""
    percent = metric(name).style == "percent"
    scale = 100 if percent else 1
    first = min(line.curve.updates[0] for line in lines)
    last = max(line.curve.updates[-1] for line in lines)
    traces: list[dict[str, Any]] = []
    if teacher:
        traces += _teacher(teacher, scale, first, last)
    said = []
    for arm, key in dict.fromkeys((line.arm, line.key) for line in lines):
        own = [_thin(line.curve) for line in lines if line.arm == arm]
        several = len(own) > 1
        for updates, values in own:
            traces.append(
                _trace(updates, [scale * v for v in values], key, 1 if several else 2.2, 0.35 if several else 1)
            )
            traces[-1]["hoverinfo"] = "skip"
        # Something that is not measured at every update, such as the precision of no labels, may lack points.
        found = [dict(zip(u, v, strict=True)) for u, v in own]
        updates = [u for u in own[0][0] if all(u in points for points in found)]
        if updates:
            mean = [statistics.fmean(points[u] for points in found) for u in updates]
            traces.append(_trace(updates, [scale * v for v in mean], key, 2.4, 1))
            traces[-1]["name"] = figures.plain(arm)
            traces[-1]["hovertemplate"] = "%{y:.4~g}" + (" %" if percent else "")
        end = [values[-1] for _, values in own if math.isfinite(values[-1])]
        if end:
            said.append(f"{arm} ends at {scale * statistics.fmean(end):.4g}{' %' if percent else ''}")
    title = f"{_title(split, name)}{' (%)' if percent else ''}"
    y = figures.axis(nticks=6, tickformat="~g")
    ticks = {"dtick": 1} if last - first < 10 else {"nticks": 6}  # nothing happens between two
    layout = figures.figure(traces, figures.axis(over, **ticks, showgrid=False), y, hovermode="x unified")
    return Chart(title, layout, f"{title} over {over}s {first} to {last}: {'; '.join(said)}.", height=250)


def _title(split: str, name: str) -> str:
    label = metric(name).label
    if split == "validation":
        return f"Validation {label.lower() if name == 'accuracy' else label}"
    if name == "lr":
        return "Learning rate"
    if name == "loss":
        return "Training loss"
    if name.startswith("loss/"):
        return f"Loss term {name.removeprefix('loss/')}"
    return f"{label} ({split})" if split and label == name else label


def _teacher(lines: Sequence[Line], scale: int, first: int, last: int) -> list[dict[str, Any]]:
    """A teacher measured once is a level; one that moves is a curve."""
    traces = []
    for line in lines:
        updates, values = _thin(line.curve)
        if len(updates) == 1:
            updates, values = [first, last], [values[0]] * 2
        trace = _trace(updates, [scale * v for v in values], "teacher", 1.4, 0.8 if len(lines) == 1 else 0.4)
        trace["line"]["dash"] = "dash"
        traces.append({**trace, "hoverinfo": "skip"})
    return traces


def _trace(x: Sequence[float], y: Sequence[float], key: str, width: float, opacity: float) -> dict[str, Any]:
    return {
        "x": list(x),
        "y": figures.clean(y),
        "mode": "lines" if len(x) > 1 else "markers",
        "line": {"color": figures.colour(key), "width": width},
        "marker": {"color": figures.colour(key)},
        "opacity": opacity,
    }


def _thin(curve: Curve) -> tuple[list[float], list[float]]:
    """At most ``_POINTS`` points: means over equal runs of neighbours, so no spike or gap is invented."""
    count = len(curve.updates)
    if count <= _POINTS:
        return list(curve.updates), list(curve.values)
    cuts = [i * count // _POINTS for i in range(_POINTS + 1)]
    pieces = list(pairwise(cuts))
    return (
        [statistics.fmean(curve.updates[a:b]) for a, b in pieces],
        [statistics.fmean(curve.values[a:b]) for a, b in pieces],
    )
