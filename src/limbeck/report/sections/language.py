"""Language models: how well they predict, how far their target moved, and what they write."""

import json
from pathlib import Path
from typing import Any

from limbeck.data import Data
from limbeck.errors import LimbeckError
from limbeck.report import figures
from limbeck.report.blocks import Block, Chart, Charts, Section, Table, Text
from limbeck.report.folder import Arm, Curve, Loaded
from limbeck.report.numbers import NOTHING, metric, spread

FILE = "samples.json"
_SHOWN = 5
_COLUMNS = ("token_nll", "perplexity", "teacher_nll", "distinct_5")


def language(loaded: Loaded, data: Data | None) -> Section | None:
    """Perplexity, the schedule of the target where a method has one, and samples side by side."""
    written = {arm.name: rows for arm in loaded.arms if (rows := _samples(arm))}
    if not written:
        return None
    blocks: list[Block] = [_scores(loaded)]
    schedule = _schedule(loaded)
    if schedule is not None:
        blocks.append(schedule)
    blocks.append(_side_by_side(written))
    blocks.append(
        Text(
            "NLLs are in nats a token. Every model continues the same prompts of the test text, at temperature 1 and "
            "with the same draws (first "
            "seed; a line break is shown as ⏎). Teacher NLL: how unlikely the teacher finds what the student wrote, "
            "per token.",
            "note",
        )
    )
    return Section("language", "Text", tuple(blocks))


def _scores(loaded: Loaded) -> Table:
    rows = [(arm.name, arm.metrics, figures.key(at)) for at, arm in enumerate(loaded.arms)]
    teacher = next((arm.teacher for arm in loaded.arms if arm.teacher), None)
    if teacher:
        rows.append(("teacher", teacher, "teacher"))
    shown = [name for name in _COLUMNS if any(name in metrics for _, metrics, _ in rows)]
    cells = tuple(
        (who, *(spread(name, metrics[name]) if name in metrics else NOTHING for name in shown))
        for who, metrics, _ in rows
    )
    return Table("Test text", ("", *(metric(name).label for name in shown)), cells, tuple(key for _, _, key in rows))


def _schedule(loaded: Loaded) -> Charts | None:
    """The path of t: 0 is the student's own prediction as its target, 1 the teacher's."""
    lines: list[tuple[str, str, Curve]] = []
    for at, arm in enumerate(loaded.arms):
        for seed in arm.seeds:
            found = (curve for curve in seed.final.curves if (curve.split, curve.name) == ("train", "t"))
            lines += [(arm.name, figures.key(at), curve) for curve in found]
    if not lines:
        return None
    traces: list[dict[str, Any]] = [
        {
            "x": list(curve.updates),
            "y": figures.clean(curve.values),
            "mode": "lines",
            "line": {"color": figures.colour(key), "width": 2},
            "name": figures.plain(arm),
            "hovertemplate": "%{y:.3f}",
        }
        for arm, key, curve in lines
    ]
    x = figures.axis("update", nticks=6, showgrid=False)
    ends = "; ".join(f"{arm} goes from {c.values[0]:.2f} to {c.values[-1]:.2f}" for arm, _, c in lines)
    chart = Chart(
        "How far the target has moved to the teacher (t)",
        figures.figure(traces, x, figures.axis(range=[0, 1.02]), hovermode="x unified"),
        f"Interpolation parameter t over updates: {ends}.",
        "0: the student's own prediction, 1: the teacher's. One line a seed.",
        height=250,
    )
    return Charts((chart,), tuple(dict.fromkeys((arm, key) for arm, key, _ in lines)))


def _side_by_side(written: dict[str, list[dict[str, str]]]) -> Table:
    first = next(iter(written.values()))
    # Arms of one comparison continue the same prompts; one with other data is shown without samples.
    prompts = [row["prompt"] for row in first]
    arms = {name: rows for name, rows in written.items() if [row["prompt"] for row in rows] == prompts}
    teacher = next((rows for rows in arms.values() if "teacher" in rows[0]), None)
    columns = [("teacher", [row["teacher"] for row in teacher])] if teacher else []
    columns += [(name, [row["student"] for row in rows]) for name, rows in arms.items()]
    cells = tuple(
        (_line(prompt), *(_line(texts[at]) for _, texts in columns)) for at, prompt in enumerate(prompts[:_SHOWN])
    )
    return Table("What they write", ("prompt", *(name for name, _ in columns)), cells, prose=True)


def _line(text: str) -> str:
    return text.replace("\n", "⏎ ")


def _samples(arm: Arm) -> list[dict[str, str]]:
    path = arm.seeds[0].final.folder / FILE if arm.seeds else Path()
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["samples"]
        if not all(isinstance(row[key], str) for row in rows for key in ("prompt", "student")):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise LimbeckError(f"{path} does not hold samples with prompt and student") from None
    return list(rows)
