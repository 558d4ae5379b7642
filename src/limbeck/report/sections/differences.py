"""Paired differences with their 95% intervals: the forest plot of a comparison."""

from limbeck.data import Data
from limbeck.report import figures
from limbeck.report.blocks import Block, Chart, Charts, Section, Table, Text
from limbeck.report.folder import Difference, Loaded
from limbeck.report.numbers import metric, signed
from limbeck.report.verdict import WORDS, verdict

_COLOURS = {"better": "good", "worse": "bad", "undecided": "muted"}


def differences(loaded: Loaded, data: Data | None) -> Section | None:
    """One panel a metric, one line a pair of arms."""
    if not loaded.differences:
        return None
    metrics = list(dict.fromkeys(d.metric for d in loaded.differences))
    panels = tuple(_forest([d for d in loaded.differences if d.metric == name]) for name in metrics)
    table = Table(
        "Paired differences, arm minus baseline",
        ("Arm against baseline", "Metric", "Difference", "95% interval", "Seeds", "Verdict"),
        tuple(
            (
                f"{d.arm} against {d.baseline}",
                metric(d.metric).label,
                signed(d.metric, d.mean),
                interval(d),
                str(d.seeds),
                WORDS[verdict(d)],
            )
            for d in loaded.differences
        ),
        folded=True,
    )
    seeds = min(d.seeds for d in loaded.differences)
    note = (
        "A line that stays on one side of zero is a difference; one that crosses zero is not. Differences "
        "are taken seed by seed; their intervals cover the randomness of training, not the choice of test "
        f"samples, and are not widened for the number of differences shown ({len(loaded.differences)})."
    )
    blocks: list[Block] = [
        Charts(panels, (("better", "good"), ("worse", "bad"), ("not decided", "undecided"))),
        table,
    ]
    if seeds < 5:
        blocks.append(Text(f"With {seeds} seed{'s' * (seeds != 1)} such intervals are rough; five or more are better."))
    return Section("differences", "What differs", (*blocks, Text(note, "note")))


def interval(difference: Difference, *, unit: bool = False) -> str:
    """``+0.31 to +2.10``, or that there is none."""
    if difference.low is None or difference.high is None:
        return "not known"
    low = signed(difference.metric, difference.low, unit=False)
    return f"{low} to {signed(difference.metric, difference.high, unit=unit)}"


def _forest(rows: list[Difference]) -> Chart:
    name = rows[0].metric
    shape = metric(name)
    scale = 100 if shape.style == "percent" else 1
    traces = []
    one_baseline = len({row.baseline for row in rows}) == 1
    for position, row in enumerate(rows):
        colour = figures.colour(_COLOURS[verdict(row)])
        y = len(rows) - 1 - position
        hover = f"{figures.plain(row.arm)} against {figures.plain(row.baseline)}<br>{signed(name, row.mean)}"
        hover += f" ({interval(row)})<br>{WORDS[verdict(row)]}"
        if row.low is not None and row.high is not None:
            ends = figures.clean([scale * row.low, scale * row.high])
            traces.append(
                {
                    "x": ends,
                    "y": [y, y],
                    "mode": "lines+markers",
                    "line": {"color": colour, "width": 3},
                    "marker": {"symbol": "line-ns", "size": 10, "line": {"width": 2.5, "color": colour}},
                    "hoverinfo": "skip",
                }
            )
        symbol = {"better": "diamond", "worse": "x", "undecided": "circle-open"}[verdict(row)]
        traces.append(
            {
                "x": figures.clean([scale * row.mean]),
                "y": [y],
                "mode": "markers",
                "marker": {
                    "symbol": symbol,
                    "size": 12,
                    "color": colour,
                    "line": {"width": 2, "color": colour},
                },
                "text": [hover],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    labels = [figures.plain(row.arm if one_baseline else f"{row.arm} \u2212 {row.baseline}") + "  " for row in rows]
    unit = "points" if scale == 100 else "ms" if shape.style == "ms" else ""
    good = "right of zero is better" if rows[0].better == "higher" else "left of zero is better"
    layout = figures.figure(
        traces,
        figures.axis(", ".join(filter(None, (unit, good))), nticks=6),
        figures.axis(
            tickvals=[len(rows) - 1 - i for i in range(len(rows))],
            ticktext=labels,
            range=[-0.6, len(rows) - 0.4],
            showgrid=False,
        ),
        shapes=[
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": 0,
                "x1": 0,
                "y0": 0,
                "y1": 1,
                "layer": "below",
                "line": {"color": figures.colour("ink"), "width": 1, "dash": "dot"},
            }
        ],
    )
    title = shape.label + (f", against {rows[0].baseline}" if one_baseline else "")
    said = "; ".join(f"{r.arm} against {r.baseline} {signed(name, r.mean)}, {interval(r)}" for r in rows)
    return Chart(title, layout, f"Differences in {shape.label} with 95% intervals: {said}.", height=84 + 34 * len(rows))
