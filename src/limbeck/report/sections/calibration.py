"""Does a confidence mean what it says: reliability diagrams, raw and after temperature scaling."""

import torch
from torch import Tensor

from limbeck.data import Data
from limbeck.metrics.calibration import reliability
from limbeck.report import figures
from limbeck.report.blocks import Chart, Charts, Section, Table, Text
from limbeck.report.folder import Arm, Loaded
from limbeck.report.numbers import spread

_COLUMNS = ("temperature", "ece", "scaled/ece", "nll", "scaled/nll")
_HEADINGS = ("", "Temperature", "ECE", "ECE, scaled", "NLL", "NLL, scaled")


def calibration(loaded: Loaded, data: Data | None) -> Section | None:
    """Reliability diagrams of all arms and the teacher, where predictions were kept."""
    raw, scaled = [], []
    for position, arm in enumerate(loaded.arms):
        key = figures.key(position)
        plain = _pooled(arm, scaled=False)
        if plain is not None:
            raw.append((arm.name, key, *plain))
        cooled = _pooled(arm, scaled=True)
        if cooled is not None:
            scaled.append((arm.name, key, *cooled))
    if not raw:
        return None
    teacher = _pooled_teacher(loaded.featured)
    if teacher is not None:
        raw.append(("teacher", "teacher", *teacher))
    charts = [_diagram("Raw", raw)]
    if scaled:
        charts.append(_diagram("After temperature scaling", scaled))
    rows = tuple((arm.name, *(spread(name, arm.metrics.get(name, ())) for name in _COLUMNS)) for arm in loaded.arms)
    table = Table("Calibration in numbers", _HEADINGS, rows, tuple(map(figures.key, range(len(rows)))))
    whiskers = "" if len(loaded.arms) > 1 else "; whiskers are 95% Wilson intervals"
    note = (
        "Each marker is one of 15 bins of confidence, its area the share of test samples in the bin: small "
        f"markers are noise{whiskers}. Below the diagonal a model is too sure of itself, above too unsure. "
        "Bins are pooled over seeds; the table gives the mean of each seed's own ECE."
    )
    if scaled:
        note += " The temperature is fitted on validation data, never on the test data."
    return Section(
        "calibration",
        "Calibration",
        (
            Charts(tuple(charts), figures.keys(loaded, teacher=teacher is not None), wide=True),
            table,
            Text(note, "note"),
        ),
    )


def _pooled(arm: Arm, *, scaled: bool) -> tuple[Tensor, Tensor] | None:
    """Logits [S N, C] and labels [S N] over all seeds, each seed's logits divided by its own temperature."""
    parts = []
    for seed in arm.seeds:
        said = seed.final.predictions
        temperature = seed.final.metrics.get("temperature") if scaled else 1.0
        if said is None or temperature is None:
            return None
        parts.append((said.logits / temperature, said.label))
    if not parts:
        return None
    return torch.cat([logits for logits, _ in parts]), torch.cat([label for _, label in parts])


def _pooled_teacher(arm: Arm) -> tuple[Tensor, Tensor] | None:
    said = [seed.final.predictions for seed in arm.seeds]
    parts = [(p.teacher_logits, p.label) for p in said if p is not None and p.teacher_logits is not None]
    if not parts:
        return None
    return torch.cat([logits for logits, _ in parts]), torch.cat([label for _, label in parts])


def _diagram(title: str, rows: list[tuple[str, str, Tensor, Tensor]]) -> Chart:
    traces: list[figures.Figure] = [
        {
            "x": [0, 1],
            "y": [0, 1],
            "mode": "lines",
            "line": {"color": figures.colour("muted"), "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    cells = []
    alone = sum(key != "teacher" for _, key, _, _ in rows) == 1
    for position, (name, key, logits, labels) in enumerate(rows):
        bins = reliability(logits, labels)
        filled = [
            (float(c), float(a), int(n))
            for c, a, n in zip(bins.confidence, bins.accuracy, bins.count, strict=True)
            if n > 0
        ]
        total = sum(n for _, _, n in filled)
        cells += [(name, f"{100 * c:.1f} %", f"{100 * a:.1f} %", str(n)) for c, a, n in filled]
        trace: figures.Figure = {
            "x": figures.clean(c for c, _, _ in filled),
            "y": figures.clean(a for _, a, _ in filled),
            "mode": "lines+markers",
            "line": {
                "color": figures.colour(key),
                "width": 1.2,
                "dash": "dash" if key == "teacher" else "solid",
            },
            "marker": {
                "color": figures.colour(key),
                "symbol": "circle-open" if key == "teacher" else figures.symbol(position),
                "size": figures.clean(max(4, 30 * (n / total) ** 0.5) for _, _, n in filled),
                "opacity": 0.75,
                "line": {"width": 1, "color": figures.colour(key)},
            },
            "text": [
                f"{figures.plain(name)}: says {100 * c:.1f} %, is right {100 * a:.1f} %<br>{n} of {total} predictions"
                for c, a, n in filled
            ],
            "hovertemplate": "%{text}<extra></extra>",
        }
        if alone and key != "teacher":
            ends = [_wilson(a, n) for _, a, n in filled]
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": figures.clean(high - a for (_, a, _), (_, high) in zip(filled, ends, strict=True)),
                "arrayminus": figures.clean(a - low for (_, a, _), (low, _) in zip(filled, ends, strict=True)),
                "color": figures.colour(key),
                "thickness": 1,
                "width": 3,
            }
        traces.append(trace)
    ticks = {"range": [-0.03, 1.04], "tickformat": ".0%", "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    layout = figures.figure(traces, figures.axis("confidence", **ticks), figures.axis("accuracy", **ticks))
    table = Table(
        f"{title}: the bins",
        ("Model", "Mean confidence", "Accuracy", "Predictions"),
        tuple(cells),
        folded=True,
    )
    gaps = "; ".join(f"{name}: {_gap(logits, labels)}" for name, _, logits, labels in rows)
    return Chart(title, layout, f"Reliability diagram, {title.lower()}. {gaps}.", height=380, table=table)


def _gap(logits: Tensor, labels: Tensor) -> str:
    confidence, said = logits.softmax(-1).max(-1)
    gap = float(confidence.mean() - (said == labels).float().mean())
    return f"on average {100 * abs(gap):.1f} points {'too sure' if gap > 0 else 'too unsure'}"


def _wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a share of ``count`` draws."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return centre - half, centre + half
