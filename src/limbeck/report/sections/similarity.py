"""Pairs of sentences: what was predicted against what people said, and rank correlation from stage to stage."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from limbeck.data.data import Data
from limbeck.errors import LimbeckError
from limbeck.metrics.similarity import spearman
from limbeck.report import figures
from limbeck.report.blocks import Block, Chart, Charts, Section, Table, Text
from limbeck.report.folder import Arm, Loaded, Seed

_SCORES = "similarity.safetensors"  # of a model, on the test pairs
_LABELS = "labels.safetensors"  # of teachers, on the training pairs
_POINTS = 600  # more dots hide each other, and make the page heavy


def similarity(loaded: Loaded, data: Data | None) -> Section | None:
    """A scatter of the first seed of every arm, and correlations over the stages of those with several."""
    scatters, courses = [], []
    for position, arm in enumerate(loaded.arms):
        if arm.seeds and (arm.seeds[0].final.folder / _SCORES).is_file():
            scatters += _scatters(arm, figures.key(position))
            courses += [course for course in (_course(arm),) if course is not None]
    if not scatters:
        return None
    blocks: list[Block] = [Charts(tuple(scatters))]
    note = (
        "Each dot is a test pair of the first seed, those of equal gold score spread a little for the eye"
        f"; at most {_POINTS} of them are drawn, evenly taken. Spearman's correlation asks only for the right order."
    )
    if courses:
        blocks.append(Text("From stage to stage", "heading"))
        blocks += [Charts((chart,), keys, wide=True) for chart, keys in courses]
        note += (
            " Dotted: the labels, which are the teachers' scores of the training pairs, measured against scores that "
            "nobody trained on; "
            "models are measured on the test pairs. Mean over seeds."
        )
    return Section("similarity", "Pairs of sentences", (*blocks, Text(note, "note")))


def _scatters(arm: Arm, key: str) -> list[Chart]:
    """The kept model, or the best of each kind where several were trained side by side."""
    seed = arm.seeds[0]
    found = _read(seed.final.folder / _SCORES)
    kinds = [name for name in found if name.endswith("_score")] or ["score"]
    kept = _kept(seed)
    charts = []
    for kind in kinds:
        name = kind.removesuffix("_score")
        title = arm.name if kind == "score" else f"{arm.name}: {name}{', kept' if name == kept else ''}"
        charts.append(_scatter(title, key, found[kind], found["gold"]))
    return charts


def _scatter(title: str, key: str, scores: Tensor, gold: Tensor) -> Chart:
    rows = torch.linspace(0, len(gold) - 1, min(_POINTS, len(gold))).long()
    # A fixed, even jitter: gold scores lie on a coarse grid.
    jitter = ((torch.arange(len(rows)) * 0.618034) % 1 - 0.5) * 0.02
    trace = {
        "x": figures.clean((gold[rows] + jitter).tolist()),
        "y": figures.clean(scores[rows].tolist()),
        "mode": "markers",
        "marker": {"color": figures.colour(key), "size": 4, "opacity": 0.45},
        "hovertemplate": "gold %{x:.2f}, predicted %{y:.2f}<extra></extra>",
    }
    value = spearman(scores, gold)
    layout = figures.figure([trace], figures.axis("gold score", nticks=6), figures.axis("predicted score", nticks=6))
    alt = f"Predicted against gold scores of {len(gold)} test pairs, {title}: Spearman's correlation {value:.3f}."
    return Chart(f"{title}: Spearman {value:.3f}", layout, alt, height=300)


def _course(arm: Arm) -> tuple[Chart, tuple[tuple[str, str], ...]] | None:
    """Spearman's correlation of every stage that labels pairs or trains a model to, one line a kind of model."""
    points: dict[str, tuple[bool, list[float]]] = {}
    for seed in arm.seeds:
        for stage in seed.stages:
            labels = (stage.folder / _LABELS).is_file()
            if not labels and not (stage.folder / _SCORES).is_file():
                continue
            if "spearman" in stage.metrics and stage.name != seed.run["final"]:
                points.setdefault(stage.name, (labels, []))[1].append(stage.metrics["spearman"])
    if len(points) < 2:
        return None
    means = {name: statistics.fmean(values) for name, (_, values) in points.items()}
    lines: dict[tuple[str, bool], list[str]] = {}
    for name, (labels, _) in points.items():
        lines.setdefault((_kind(name), labels), []).append(name)
    keys = {kind: figures.key(place) for place, kind in enumerate(dict.fromkeys(kind for kind, _ in lines))}
    traces: list[dict[str, Any]] = []
    for (kind, labels), own in lines.items():
        colour = figures.colour(keys[kind])
        traces.append(
            {
                "x": [figures.plain(name) for name in own],
                "y": figures.clean(means[name] for name in own),
                "mode": "lines+markers",
                "line": {"color": colour, "width": 1.4, "dash": "dot" if labels else "solid"},
                "marker": {"color": colour, "size": 9, "symbol": "circle-open" if labels else "circle"},
                "hovertemplate": "%{x}: %{y:.3f}<extra></extra>",
            }
        )
    x = figures.axis("", type="category", categoryorder="array", categoryarray=[figures.plain(n) for n in points])
    layout = figures.figure(traces, x, figures.axis("Spearman", nticks=6))
    rows = tuple((name, f"{value:.3f}") for name, value in means.items())
    said = "; ".join(f"{name} {value}" for name, value in rows)
    table = Table("Spearman's correlation by stage", ("", "Spearman"), rows)
    chart = Chart(arm.name, layout, f"Spearman's correlation from stage to stage, {arm.name}: {said}.", table=table)
    return chart, tuple(keys.items())


def _kind(stage: str) -> str:
    """What is trained or labels in a stage: ``bi`` of ``cycle-2-bi-labels``."""
    return re.split(r"-\d+-", stage)[-1].removesuffix("-labels")


def _kept(seed: Seed) -> str | None:
    path = seed.final.folder / "choice.json"
    return json.loads(path.read_text(encoding="utf-8")).get("kept") if path.is_file() else None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise LimbeckError(f"{path} cannot be read: {error}") from None
    if not {"score", "gold"} <= found.keys():
        raise LimbeckError(f"{path} does not hold score and gold, only {sorted(found)}")
    return found
