"""Pseudo labels over training: how many are used, how many of those are right, how many samples teach."""

import math
import statistics
from collections.abc import Iterator, Sequence

from limbeck.data import Data
from limbeck.report import figures
from limbeck.report.blocks import Charts, Section, Table, Text
from limbeck.report.folder import Curve, Loaded
from limbeck.report.numbers import NOTHING, metric, written
from limbeck.report.sections.curves import PSEUDO_LABELS, Line, chart, of_pseudo_labels

_LAST = 5  # rows of the log whose mean is told as the end of training
_NOTES = {
    "coverage": "Coverage: the share of unlabelled samples whose pseudo label is trusted. ",
    "precision": "Precision: how many of the pseudo labels in use are right, known only because the true labels of "
    "this data set are; training never reads them. Clusters are matched to classes first. ",
    "used": "A sample has a loss where anything of it is learnt from. ",
}


def pseudo_labels(loaded: Loaded, data: Data | None) -> Section | None:
    """What the final stages logged of their pseudo labels, one chart a quantity."""
    lines = list(_lines(loaded))
    names = [
        n for end in PSEUDO_LABELS for n in dict.fromkeys(li.curve.name for li in lines) if n.split("/")[-1] == end
    ]
    if not names:
        return None
    arms = list(dict.fromkeys((line.arm, line.key) for line in lines))
    charts = tuple(chart("train", name, [line for line in lines if line.curve.name == name]) for name in names)
    table = Table(
        "At the end of training, mean over seeds",
        ("Method", *(metric(name).label for name in names)),
        tuple(
            (
                arm,
                *(
                    _ending(name, [li.curve for li in lines if (li.arm, li.curve.name) == (arm, name)])
                    for name in names
                ),
            )
            for arm, _ in arms
        ),
        marks=tuple(key for _, key in arms),
    )
    ends = {name.split("/")[-1] for name in names}
    note = "".join(text for end, text in _NOTES.items() if end in ends)
    note += "Each point is a mean over the updates since the last one; the table holds means of the last "
    note += f"{_LAST} points."
    return Section("pseudo-labels", "Pseudo labels", (Charts(charts, tuple(arms)), table, Text(note, "note")))


def _lines(loaded: Loaded) -> Iterator[Line]:
    for position, arm in enumerate(loaded.arms):
        for seed in arm.seeds:
            for curve in seed.final.curves:
                if of_pseudo_labels(curve):
                    yield Line(arm.name, figures.key(position), curve)


def _ending(name: str, curves: Sequence[Curve]) -> str:
    found = [statistics.fmean(curve.values[-_LAST:]) for curve in curves]
    known = [value for value in found if math.isfinite(value)]
    return written(name, statistics.fmean(known)) if known else NOTHING
