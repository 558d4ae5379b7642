"""Rounds and committees: what came out of stages that a method repeats, one after the other."""

import re
from collections.abc import Iterator

from limbeck.data import Data
from limbeck.metrics.directions import BETTER
from limbeck.report import figures
from limbeck.report.blocks import Block, Charts, Section, Text
from limbeck.report.folder import Curve, Loaded, Seed
from limbeck.report.numbers import METRICS
from limbeck.report.sections.curves import Line, chart

_NUMBERED = re.compile(r"(.*?)-?(\d+)(-.*)?")
_HEADLINES, _FACTS = 2, 4
"""How many of the task's metrics are drawn, and of the method's own numbers."""

Round = tuple[int, dict[str, float]]


def rounds(loaded: Loaded, data: Data | None) -> Section | None:
    """The numbers of each repeated stage over its repeats, a chart a number."""
    found: dict[str, list[tuple[str, str, list[Round]]]] = {}
    for position, arm in enumerate(loaded.arms):
        for seed in arm.seeds:
            for name, repeats in _repeated(seed):
                found.setdefault(name, []).append((arm.name, figures.key(position), repeats))
    blocks: list[Block] = []
    for name, rows in found.items():
        if len(found) > 1:
            blocks.append(Text(name, "heading"))
        lines = {metric: _lines(metric, rows) for metric in _drawn(rows)}
        charts = tuple(chart("", metric, drawn, over="repeat") for metric, drawn in lines.items())
        blocks.append(Charts(charts, tuple(dict.fromkeys((arm, key) for arm, key, _ in rows))))
    if not blocks:
        return None
    note = f"Each point is one repeat of {', '.join(found)}, a round or a member of a committee; thin lines are seeds, "
    return Section("rounds", "Repeat by repeat", (*blocks, Text(f"{note}the strong line their mean.", "note")))


def _repeated(seed: Seed) -> Iterator[tuple[str, list[Round]]]:
    """Series of stages that differ by a number in their name only, with the numbers that all of them have."""
    series: dict[str, list[Round]] = {}
    for stage in seed.stages:
        match = _NUMBERED.fullmatch(stage.name)
        if match and BETTER.keys() & stage.metrics.keys():
            series.setdefault(f"{match[1]}{match[3] or ''}", []).append((int(match[2]), stage.metrics))
    for name, repeats in series.items():
        own = set.intersection(*(set(metrics) for _, metrics in repeats)) - METRICS.keys()
        own = {fact for fact in own if "/" not in fact}
        last = seed.final.metrics
        if own and own <= last.keys() and all(metrics is not last for _, metrics in repeats):
            repeats.append((max(number for number, _ in repeats) + 1, last))  # the same once more, and kept
        if len(repeats) > 1:
            yield name, sorted(repeats, key=lambda one: one[0])


def _drawn(rows: list[tuple[str, str, list[Round]]]) -> list[str]:
    """Headline metrics, then the method's own numbers, as far as they change."""
    metrics = [metrics for _, _, repeats in rows for _, metrics in repeats]
    common = set.intersection(*(set(one) for one in metrics))
    headlines = [name for name in BETTER if name in common][:_HEADLINES]
    facts = dict.fromkeys(name for one in metrics for name in one if "/" not in name)
    facts = {name: None for name in facts if name not in METRICS or name not in common}
    changing = [name for name in facts if any(_changes(name, repeats) for _, _, repeats in rows)]
    return headlines + changing[:_FACTS]


def _changes(name: str, repeats: list[Round]) -> bool:
    """Whether a number is there at least twice, and not always the same."""
    return len({metrics[name] for _, metrics in repeats if name in metrics}) > 1


def _lines(metric: str, rows: list[tuple[str, str, list[Round]]]) -> list[Line]:
    lines = []
    for arm, key, repeats in rows:
        points = [(number, metrics[metric]) for number, metrics in repeats if metric in metrics]
        if points:
            numbers, values = zip(*points, strict=True)
            lines.append(Line(arm, key, Curve("", metric, numbers, values)))
    return lines
