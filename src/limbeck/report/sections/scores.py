"""Students, baselines and teacher in one table, and every seed as a dot."""

import statistics
from typing import Any

from limbeck.data import Data
from limbeck.metrics.directions import BETTER
from limbeck.report import figures
from limbeck.report.blocks import Block, Chart, Charts, Section, Table, Text
from limbeck.report.folder import Loaded
from limbeck.report.numbers import METRICS, metric, primary, spread, written

_COLUMNS = (*BETTER, "parameters", "macs", "latency_ms")
_WIDTH = 7


def scores(loaded: Loaded, data: Data | None) -> Section | None:
    """The table of test metrics, mean and spread over seeds."""
    rows = _rows(loaded)
    present = {name for _, values, _ in rows for name in values}
    chosen = ([name for name in _COLUMNS if name in present] or sorted(present))[:_WIDTH]
    if not chosen:
        return None
    several = any(len(values) > 1 for _, metrics, _ in rows for values in metrics.values())
    blocks: list[Block] = [
        Table(
            "Test metrics" + (", mean ± standard deviation over seeds" if several else ""),
            ("", *(_heading(name) for name in chosen)),
            tuple((label, *(spread(name, values.get(name, ())) for name in chosen)) for label, values, _ in rows),
            tuple(key for _, _, key in rows),
        )
    ]
    if several:
        dots = [name for name in BETTER if name in chosen] or [primary(chosen) or chosen[0]]
        blocks.append(Charts(tuple(_dots(name, rows) for name in dots)))
    rest = [name for name in (*METRICS, *sorted(present)) if name in present and name not in chosen]
    if rest:
        blocks.append(
            Table(
                "All other metrics",
                ("", *(label for label, _, _ in rows)),
                tuple(
                    (metric(name).label, *(spread(name, values.get(name, ())) for _, values, _ in rows))
                    for name in dict.fromkeys(rest)
                ),
                folded=True,
            )
        )
    notes = {
        "ece": " ECE: expected calibration error.",
        "aurc": " AURC: area under the risk-coverage curve, how well confidence ranks right before wrong.",
        "macs": " MACs: multiply-adds a sample.",
    }
    said = "".join(text for name, text in notes.items() if name in chosen)
    blocks.append(Text("↑ higher is better, ↓ lower is better." + said, "note"))
    return Section("scores", "Students and teacher" if len(rows) > len(loaded.arms) else "Students", tuple(blocks))


def _rows(loaded: Loaded) -> list[tuple[str, dict[str, list[float]], str]]:
    """Label, metrics and colour key: the arms, then each teacher that differs from those before it."""
    rows = [(arm.name, arm.metrics, figures.key(i)) for i, arm in enumerate(loaded.arms)]
    teachers: list[tuple[list[str], dict[str, list[float]]]] = []
    for arm in loaded.arms:
        quality = {name: values for name, values in arm.teacher.items() if name != "latency_ms"}
        for names, known in teachers:  # the latency of one and the same model differs from run to run
            if quality == {name: values for name, values in known.items() if name != "latency_ms"}:
                names.append(arm.name)
                break
        else:
            if quality:
                teachers.append(([arm.name], arm.teacher))
    for names, values in teachers:
        label = "teacher" if len(teachers) == 1 else f"teacher of {', '.join(names)}"
        rows.append((label, values, "teacher"))
    return rows


def _heading(name: str) -> str:
    shape = metric(name)
    return f"{shape.label} {'↑' if shape.better == 'higher' else '↓'}"


def _dots(name: str, rows: list[tuple[str, dict[str, list[float]], str]]) -> Chart:
    """One dot a seed, a tick at the mean: the eye sees what the standard deviation sums up."""
    shown = [(label, values[name], key) for label, values, key in rows if values.get(name)]
    scale = 100 if metric(name).style == "percent" else 1
    traces: list[dict[str, Any]] = []
    for position, (label, values, key) in enumerate(shown):
        colour = figures.colour(key)
        row = len(shown) - 1 - position
        symbol = "circle-open" if key == "teacher" else figures.symbol(position)
        traces.append(
            {
                "x": figures.clean(scale * value for value in values),
                "y": [row] * len(values),
                "mode": "markers",
                "marker": {"color": colour, "size": 9, "opacity": 0.7, "symbol": symbol},
                "text": [f"{figures.plain(label)}: {written(name, value)}" for value in values],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
        mean = figures.clean([scale * statistics.fmean(values)])[0]
        traces.append(
            {
                "x": [mean, mean],
                "y": [row - 0.32, row + 0.32],
                "mode": "lines",
                "line": {"color": colour, "width": 2.5},
                "hoverinfo": "skip",
            }
        )
    ticks = [len(shown) - 1 - i for i in range(len(shown))]
    layout = figures.figure(
        traces,
        figures.axis(ticksuffix=" %" if scale == 100 else "", nticks=5),
        figures.axis(
            tickvals=ticks,
            ticktext=[figures.plain(label) + "  " for label, _, _ in shown],
            range=[-0.6, len(shown) - 0.4],
            showgrid=False,
        ),
    )
    said = "; ".join(f"{label} {spread(name, values)}" for label, values, _ in shown)
    return Chart(_heading(name), layout, f"{metric(name).label} of every seed: {said}.", height=56 + 34 * len(shown))
