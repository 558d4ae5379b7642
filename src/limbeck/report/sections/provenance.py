"""How it was made: recipe, versions, time and seeds, enough to run it again."""

import statistics

from limbeck.data import Data
from limbeck.report import figures
from limbeck.report.blocks import Block, Code, Section, Table, Text
from limbeck.report.folder import Loaded
from limbeck.report.numbers import NOTHING, seconds


def provenance(loaded: Loaded, data: Data | None) -> Section | None:
    """Time and seeds of every arm, the resolved recipes, and the versions."""
    blocks: list[Block] = []
    rows = []
    for arm in loaded.arms:
        results = [seed.final.result for seed in arm.seeds]
        rows.append(
            (
                arm.name if arm.name == arm.method else f"{arm.name} ({arm.method})",
                ", ".join(str(seed.seed) for seed in arm.seeds) or NOTHING,
                _same(results, "updates"),
                _same(results, "samples_seen"),
                seconds(statistics.fmean(arm.seconds)) if arm.seconds else NOTHING,
            )
        )
    headings = ("", "Seeds", "Updates", "Samples seen", "Time a seed")
    blocks.append(Table("Runs", headings, tuple(rows), tuple(map(figures.key, range(len(rows))))))
    if loaded.unfinished:
        blocks.append(Text(f"Not finished, and left out: {', '.join(loaded.unfinished)}.", "warning"))
    blocks += [
        Code(f"Resolved recipe of {arm.name} (seed {arm.seeds[0].seed})", recipe)
        for arm in loaded.arms
        if arm.seeds and (recipe := arm.seeds[0].recipe) is not None
    ]
    if loaded.versions:
        versions = tuple((name, str(version)) for name, version in loaded.versions.items())
        blocks.append(Table("Versions", ("Package", "Version"), versions, folded=True))
    return Section("provenance", "How it was made", tuple(blocks))


def _same(results: list[dict[str, int]], name: str) -> str:
    """The number that all seeds share, or its range."""
    values = sorted({int(result[name]) for result in results if name in result})
    if not values:
        return NOTHING
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"
