import csv
import shutil
from pathlib import Path

from limbeck.report.blocks import Charts, Table
from limbeck.report.folder import load
from limbeck.report.sections.curves import curves
from limbeck.report.sections.pseudo_labels import pseudo_labels


def logged(folder: Path, rows: list[tuple[int, str, float]]) -> None:
    with (folder / "fit" / "metrics.csv").open("a", newline="") as file:
        csv.writer(file).writerows((update, 0.0, "train", name, value) for update, name, value in rows)


def test_a_run_without_pseudo_labels_has_no_such_section(run: Path) -> None:
    assert pseudo_labels(load(run), None) is None


def test_coverage_precision_and_use_over_training(comparison: Path) -> None:
    for arm, used in (("ce", 0.2), ("kd", 0.9)):
        for seed, folder in enumerate(sorted((comparison / arm).glob("seed-*"))):
            rows = [(u, "coverage", 0.1 * u) for u in (1, 2, 3)] + [(u, "used", used) for u in (1, 2, 3)]
            # Nobody was certain in the first window of the second seed.
            rows += [(u, "precision", 0.8 + 0.01 * seed) for u in (1, 2, 3)][seed == 1 :]
            if arm == "kd":
                rows.append((3, "shrunk/precision", 0.5))
            logged(folder, rows)
    section = pseudo_labels(load(comparison), None)
    assert section is not None
    charts, table, _ = section.blocks
    assert isinstance(charts, Charts)
    assert isinstance(table, Table)
    assert [chart.title for chart in charts.charts] == [
        "Coverage of pseudo labels (%)",
        "Precision of pseudo labels (%)",
        "Precision of pseudo labels, shrunk (%)",
        "Unlabelled samples with a loss (%)",
    ]
    assert charts.keys == (("ce", "arm-1"), ("kd", "arm-3"))
    means = [t for t in charts.charts[1].figure["data"] if t.get("name") == "ce"]
    assert [(t["x"], t["y"]) for t in means] == [([2, 3], [82.0, 82.0])]
    assert table.rows == (
        ("ce", "20.0 %", "82.0 %", "\u2013", "20.0 %"),
        ("kd", "20.0 %", "82.0 %", "50.0 %", "90.0 %"),
    )


def test_the_curves_leave_them_to_their_section(run: Path) -> None:
    def titles(folder: Path) -> list[str]:
        section = curves(load(folder), None)
        assert section is not None
        return [c.title for block in section.blocks if isinstance(block, Charts) for c in block.charts]

    before = titles(run)
    folder = shutil.copytree(run, run.parent / "with-labels")
    logged(folder / "seed-0", [(1, "coverage", 0.5), (1, "used", 0.5), (1, "ratio", 0.3)])
    assert titles(folder) == [*before, "ratio (train)"]
