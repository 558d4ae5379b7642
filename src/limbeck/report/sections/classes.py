"""Accuracy class by class."""

import math

import torch
from torch import Tensor

from limbeck.data import Data
from limbeck.metrics.classification import per_class_accuracy
from limbeck.report import figures
from limbeck.report.blocks import Chart, Charts, Section, Table, Text
from limbeck.report.folder import Loaded
from limbeck.report.numbers import NOTHING

_SHOWN = 40


def classes(loaded: Loaded, data: Data | None) -> Section | None:
    """One row a class, the hardest on top; of very many classes the hardest are drawn."""
    names = next((s.final.predictions.classes for arm in loaded.arms for s in arm.seeds if s.final.predictions), None)
    if names is None:
        return None
    rows = [
        (arm.name, figures.key(i), accuracy)
        for i, arm in enumerate(loaded.arms)
        if (accuracy := _accuracy(loaded, i, teacher=False)) is not None and len(accuracy) == len(names)
    ]
    teacher = _accuracy(loaded, loaded.arms.index(loaded.featured), teacher=True)
    if teacher is not None and len(teacher) == len(names):
        rows.append(("teacher", "teacher", teacher))
    told = rows[0][2].nan_to_num(2.0)  # a class without test samples comes last
    order = torch.argsort(told, stable=True).tolist()
    shown = order[:_SHOWN]
    table = Table(
        "Accuracy of every class, mean over seeds",
        ("Class", *(name for name, _, _ in rows)),
        tuple((names[c], *(_percent(float(accuracy[c])) for _, _, accuracy in rows)) for c in order),
        folded=True,
    )
    places = list(range(len(shown)))[::-1]
    traces = [
        {
            "x": figures.clean(100 * float(accuracy[c]) for c in shown),
            "y": places,
            "mode": "markers",
            "marker": {
                "color": figures.colour(key),
                "size": 11,
                "opacity": 0.85,
                "symbol": "circle-open" if key == "teacher" else figures.symbol(i),
                "line": {"width": 2, "color": figures.colour(key)} if key == "teacher" else {"width": 0},
            },
            "text": [f"{figures.plain(f'{names[c]}, {name}')}: {_percent(float(accuracy[c]))}" for c in shown],
            "hovertemplate": "%{text}<extra></extra>",
        }
        for i, (name, key, accuracy) in enumerate(rows)
    ]
    layout = figures.figure(
        traces,
        figures.axis(ticksuffix=" %", nticks=7, side="top"),
        figures.axis(
            tickvals=places,
            ticktext=[figures.plain(_short(names[c])) + "  " for c in shown],
            range=[-0.7, len(shown) - 0.3],
        ),
    )
    worst = ", ".join(f"{names[c]} ({_percent(float(rows[0][2][c]))})" for c in order[:3])
    alt = f"Accuracy of each class. Hardest for {rows[0][0]}: {worst}."
    caption = f"The {_SHOWN} hardest of {len(names)} classes." if len(order) > _SHOWN else ""
    chart = Chart("Accuracy by class", layout, alt, caption, 60 + 26 * len(shown), table)
    note = f"Mean over seeds; classes in the order of {rows[0][0]}'s accuracy, the hardest first."
    keys = figures.keys(loaded, teacher=rows[-1][1] == "teacher")
    return Section("classes", "Class by class", (Charts((chart,), keys, wide=True), Text(note, "note")))


def _accuracy(loaded: Loaded, position: int, *, teacher: bool) -> Tensor | None:
    """Accuracy of each class [C], mean over the seeds."""
    found = []
    for seed in loaded.arms[position].seeds:
        said = seed.final.predictions
        logits = None if said is None else said.teacher_logits if teacher else said.logits
        if said is not None and logits is not None:
            found.append(per_class_accuracy(logits, said.label))
    return torch.stack(found).mean(0) if found else None


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else NOTHING


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"
