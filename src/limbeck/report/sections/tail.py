"""Accuracy over how many training samples a class has, where some classes have many more than others."""

import math
from typing import Any

import torch
from torch import Tensor

from limbeck.data import Data
from limbeck.metrics.classification import per_class_accuracy
from limbeck.report import figures
from limbeck.report.blocks import Chart, Charts, Section, Table, Text
from limbeck.report.folder import Arm, Loaded, Predictions
from limbeck.report.numbers import NOTHING, written

_GROUPS = {"accuracy_many", "accuracy_medium", "accuracy_few"}

Curve = tuple[str, str, Tensor]
"""Whose it is, the colour key, and the accuracy of each class [C]."""


def tail(loaded: Loaded, data: Data | None) -> Section | None:
    """The students over class size, then the featured student's experts and teacher."""
    if data is None:  # it is opened only where the runs say that their classes differ in size
        seed = next((s for arm in loaded.arms if _GROUPS & arm.metrics.keys() for s in arm.seeds), None)
        if seed is None:
            return None
        data = seed.data
    if not data.long_tailed:
        return None
    counts = data.class_counts
    students = [
        (arm.name, figures.key(i), found)
        for i, arm in enumerate(loaded.arms)
        if (found := _accuracy(arm, lambda said: said.logits)) is not None and len(found) == len(counts)
    ]
    if not students:
        return None
    blocks = [_charts("Accuracy over class size", students, counts, data.classes)]
    parts = _parts(loaded.featured, len(counts))
    if parts:
        kinds = dict.fromkeys("teacher" if key == "teacher" else "experts" for _, key, _ in parts)
        title = f"{' and '.join(kinds).capitalize()} of {loaded.featured.name}"
        blocks.append(_charts(title, parts, counts, data.classes))
    note = Text("A point is a class, mean over seeds; those with few training samples are on the left.", "note")
    return Section("tail", "From frequent to rare classes", (*blocks, note))


def _parts(arm: Arm, classes: int) -> list[Curve]:
    """What the student is made of and taught by, measured on its own."""
    first = arm.seeds[0].final.predictions
    names = [] if first is None else list(first.others)
    curves: list[Curve] = []
    for position, name in enumerate(names):
        found = _accuracy(arm, lambda said, name=name: said.others.get(name))
        if found is not None and len(found) == classes:
            curves.append((name, figures.key(position), found))
    taught = _accuracy(arm, lambda said: said.teacher_logits)
    if taught is not None and len(taught) == classes:
        curves.append(("teacher", "teacher", taught))
    return curves


def _accuracy(arm: Arm, logits: Any) -> Tensor | None:
    """Accuracy of each class [C], mean over the seeds whose predictions hold these ``logits``."""
    said: list[Predictions] = [p for seed in arm.seeds if (p := seed.final.predictions) is not None]
    found = [per_class_accuracy(own, p.label) for p in said if (own := logits(p)) is not None]
    return torch.stack(found).mean(0) if found else None


def _charts(title: str, curves: list[Curve], counts: tuple[int, ...], classes: tuple[str, ...]) -> Charts:
    order = sorted(range(len(counts)), key=lambda c: counts[c])
    traces = [
        {
            "x": [counts[c] for c in order],
            "y": figures.clean(100 * float(accuracy[c]) for c in order),
            "mode": "lines+markers",
            "line": {"color": figures.colour(key), "width": 2, "dash": "dot" if key == "teacher" else "solid"},
            "marker": {
                "color": figures.colour(key),
                "size": 8,
                "symbol": "circle-open" if key == "teacher" else figures.symbol(position),
            },
            "text": [
                f"{figures.plain(f'{classes[c]}, {name}')}: {_percent(float(accuracy[c]))}, {counts[c]:,} samples"
                for c in order
            ],
            "hovertemplate": "%{text}<extra></extra>",
        }
        for position, (name, key, accuracy) in enumerate(curves)
    ]
    layout = figures.figure(
        traces,
        figures.axis("training samples of the class", type="log", dtick="D2", tickformat=","),
        figures.axis("accuracy", ticksuffix=" %", nticks=6, range=[-3, 103]),
    )
    rare, frequent = order[0], order[-1]
    said = "; ".join(
        f"{name} {_percent(float(accuracy[frequent]))} and {_percent(float(accuracy[rare]))}"
        for name, _, accuracy in curves
    )
    alt = f"{title}. On the most frequent class ({classes[frequent]}) and on the rarest ({classes[rare]}): {said}."
    table = Table(
        title,
        ("Class", "Samples", *(name for name, _, _ in curves)),
        tuple(
            (classes[c], f"{counts[c]:,}", *(_percent(float(accuracy[c])) for _, _, accuracy in curves))
            for c in order[::-1]
        ),
        folded=True,
    )
    return Charts((Chart(title, layout, alt, table=table),), tuple((name, key) for name, key, _ in curves), wide=True)


def _percent(value: float) -> str:
    return NOTHING if math.isnan(value) else written("accuracy", value)
