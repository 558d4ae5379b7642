"""What is taken for what: the confusion matrix, with the errors in colour."""

import torch
from torch import Tensor

from limbeck.data import Data
from limbeck.metrics.classification import confusion_matrix
from limbeck.report import figures
from limbeck.report.blocks import Chart, Charts, Section, Table, Text
from limbeck.report.folder import Arm, Loaded

_DRAWN = 120  # classes; more are unreadable, and the table of the worst confusions says more
_WRITTEN = 12


def confusion(loaded: Loaded, data: Data | None) -> Section | None:
    """One matrix an arm, pooled over its seeds, in shares of the true class."""
    charts, wide = [], False
    for arm in loaded.arms:
        said = [seed.final.predictions for seed in arm.seeds if seed.final.predictions is not None]
        if said:
            counts = torch.stack([confusion_matrix(p.logits, p.label) for p in said]).sum(0)
            wide = wide or len(said[0].classes) > _WRITTEN
            charts.append(_chart(arm, said[0].classes, counts))
    if not charts:
        return None
    note = (
        "Rows are the truth, columns what the student says. Colour shows the share of a row that went wrong; "
        "right answers, on the diagonal, stay grey so that the errors can be seen. Counts pooled over seeds."
    )
    return Section("confusion", "What is taken for what", (Charts(tuple(charts), wide=wide), Text(note, "note")))


def _chart(arm: Arm, names: tuple[str, ...], counts: Tensor) -> Chart:
    rows = counts.sum(1, keepdim=True).clamp(min=1)
    shares = counts.double() / rows
    errors = shares.clone().fill_diagonal_(0)
    worst = [
        (int(i) // len(names), int(i) % len(names))
        for i in errors.flatten().argsort(descending=True, stable=True)[:10]
        if errors.flatten()[i] > 0
    ]
    table = Table(
        f"{arm.name}: the most frequent confusions",
        ("Truth", "Taken for", "Share of the class", "Times"),
        tuple((names[t], names[s], f"{100 * shares[t, s]:.1f} %", str(int(counts[t, s]))) for t, s in worst),
        folded=True,
    )
    said = "; ".join(f"{names[t]} for {names[s]} {100 * shares[t, s]:.1f} %" for t, s in worst[:3])
    alt = f"Confusion matrix of {arm.name}. Most frequent: {said or 'no errors'}."
    if len(names) > _DRAWN:
        return Chart(arm.name, {}, alt, f"{len(names)} classes are too many to draw.", 0, table)
    labels = [figures.plain(name if len(name) <= 12 else name[:11] + "…") for name in names]
    places = list(range(len(names)))
    off: list[list[float | None]] = [[None if t == s else 100 * float(shares[t, s]) for s in places] for t in places]
    peak = max(0.01, float(errors.max()))
    heat = {
        "type": "heatmap",
        "z": [figures.clean(row) for row in off],
        "x": places,
        "y": places,
        "zmin": 0,
        "zmax": 100 * peak,
        "colorscale": [[0, figures.colour("paper")], [1, figures.colour("bad")]],
        "showscale": False,
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
        "customdata": [[f"{labels[t]} → {labels[s]}: {int(counts[t, s])}" for s in places] for t in places],
        "hovertemplate": "%{customdata} (%{z:.1f} %)<extra></extra>",
    }
    size = max(8, 12 - len(names) // 10)
    annotations = []
    if len(names) <= _WRITTEN:
        annotations = [
            {
                "x": s,
                "y": t,
                "text": f"{100 * shares[t, s]:.0f}" if t == s or shares[t, s] >= 0.005 else "",
                "showarrow": False,
                "font": {"size": 11, "color": figures.colour(_ink(t == s, float(shares[t, s]) / peak))},
            }
            for t in places
            for s in places
        ]
    boxes = [
        {
            "type": "rect",
            "x0": i - 0.5,
            "x1": i + 0.5,
            "y0": i - 0.5,
            "y1": i + 0.5,
            "fillcolor": figures.colour("grid"),
            "line": {"width": 0},
            "layer": "below",
        }
        for i in places
    ]
    ticks = {
        "tickvals": places,
        "ticktext": labels,
        "showgrid": False,
        "ticks": "",
        "tickfont": {"size": size, "color": figures.colour("muted")},
    }
    layout = figures.figure(
        [heat],
        figures.axis("said", **ticks, range=[-0.5, len(names) - 0.5]),
        figures.axis("truth", **ticks, range=[len(names) - 0.5, -0.5]),
        annotations=annotations,
        shapes=boxes,
    )
    caption = "Numbers are per cent of the true class." if annotations else ""
    return Chart(arm.name, layout, alt, caption, 400, table)


def _ink(right: bool, strength: float) -> str:
    """The colour of a number that can be read on its cell."""
    return "muted" if right else "paper" if strength > 0.75 else "ink"
