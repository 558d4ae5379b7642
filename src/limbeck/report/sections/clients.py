"""A federation client by client: how well the server's model serves each, and who failed."""

import csv
import json
import math
from pathlib import Path
from typing import NamedTuple

from limbeck.data import Data
from limbeck.errors import LimbeckError
from limbeck.report import figures
from limbeck.report.blocks import Block, Chart, Charts, Section, Table, Text
from limbeck.report.folder import Loaded, Seed
from limbeck.report.numbers import NOTHING

FILE = "clients.csv"


class _Row(NamedTuple):
    """One line of ``clients.csv``."""

    client: str
    labeled: int
    unlabeled: int
    rounds: int
    failures: int
    accuracy: float
    error: str
    classes: list[int]


def clients(loaded: Loaded, data: Data | None) -> Section | None:
    """Bars of one seed: accuracy on each client's own unlabelled samples, and what each holds."""
    found = [
        (i, arm, seed, rows) for i, arm in enumerate(loaded.arms) for seed in arm.seeds[:1] if (rows := _rows(seed))
    ]
    if not found:
        return None
    blocks: list[Block] = []
    bars = [
        {
            "type": "bar",
            "name": figures.plain(arm.name),
            "x": [row.client for row in rows],
            "y": figures.clean(100 * row.accuracy for row in rows),
            "marker": {"color": figures.colour(figures.key(i))},
            "text": [f"{figures.plain(arm.name)}, client {row.client}: {_percent(row.accuracy)}" for row in rows],
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
        }
        for i, arm, _, rows in found
    ]
    worst = "; ".join(f"{arm.name} {_percent(min(row.accuracy for row in rows))}" for _, arm, _, rows in found)
    charts = [
        Chart(
            "Accuracy at each client",
            figures.figure(
                bars, figures.axis("client", type="category"), figures.axis(ticksuffix=" %"), barmode="group"
            ),
            f"Accuracy of the server's model on each client's own unlabelled samples; the worst: {worst}.",
        ),
        _held(found[0][3]),
    ]
    blocks.append(Charts(tuple(charts), figures.keys(loaded, teacher=False), wide=True))
    for _, arm, seed, rows in found:
        failed = [row for row in rows if row.failures]
        if failed:
            blocks.append(
                Text(f"{arm.name}, seed {seed.seed}: updates of some clients failed and were left out.", "warning")
            )
            blocks.append(
                Table(
                    f"Failed updates, {arm.name}",
                    ("Client", "Failed", "of rounds", "Last error"),
                    tuple((row.client, str(row.failures), str(row.rounds), row.error) for row in failed),
                )
            )
    blocks.append(
        Text(f"One seed ({found[0][2].seed}). Truth of the unlabelled samples is used for this figure only.", "note")
    )
    return Section("clients", "Client by client", tuple(blocks))


def _held(rows: list[_Row]) -> Chart:
    """What each client holds: labelled samples by class, stacked."""
    count = len(rows[0].classes)
    traces = [
        {
            "type": "bar",
            "x": [row.client for row in rows],
            "y": [row.classes[number] for row in rows],
            "marker": {"color": f"hsl({round(360 * number / count)}, 45%, 55%)"},
            "text": [f"client {row.client}: {row.classes[number]} labels of class {number}" for row in rows],
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
        }
        for number in range(count)
    ]
    table = Table(
        "What every client holds",
        ("Client", "Labelled", "Unlabelled", "Rounds", "Failures", "Accuracy"),
        tuple(
            (r.client, str(r.labeled), str(r.unlabeled), str(r.rounds), str(r.failures), _percent(r.accuracy))
            for r in rows
        ),
        folded=True,
    )
    sizes = [row.labeled for row in rows]
    return Chart(
        "Labels at each client, by class",
        figures.figure(traces, figures.axis("client", type="category"), figures.axis(), barmode="stack"),
        f"Labelled samples of each client, coloured by class: from {min(sizes)} to {max(sizes)}.",
        table=table,
    )


def _rows(seed: Seed) -> list[_Row]:
    path: Path = seed.final.folder / FILE
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                _Row(
                    row["client"],
                    int(row["labeled"]),
                    int(row["unlabeled"]),
                    int(row["rounds"]),
                    int(row["failures"]),
                    float(row["accuracy"] or "nan"),
                    row["error"],
                    json.loads(row["classes"]),
                )
                for row in csv.DictReader(file)
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise LimbeckError(f"{path} is not a table of clients: {error!r}") from None


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else NOTHING
