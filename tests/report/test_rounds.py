import json
import shutil
from pathlib import Path
from typing import Any

from limbeck.report.blocks import Charts, Text
from limbeck.report.folder import load
from limbeck.report.sections.rounds import rounds


def repeat(folder: Path, names: dict[str, dict[str, float]], final: dict[str, float] | None = None) -> None:
    """Stages before the final one of a seed; ``final`` goes into its result."""
    run = json.loads((folder / "run.json").read_text())
    result = json.loads((folder / "fit/result.json").read_text())
    for name, metrics in names.items():
        (folder / name).mkdir()
        (folder / name / "result.json").write_text(json.dumps({**result, "stage": name, "metrics": metrics}))
    (folder / "fit/result.json").write_text(json.dumps({**result, "metrics": result["metrics"] | (final or {})}))
    (folder / "run.json").write_text(json.dumps({**run, "stages": [*names, "fit"]}))


def drawn(folder: Path) -> dict[str, Any]:
    section = rounds(load(folder), None)
    assert section is not None
    found = {}
    for block in section.blocks:
        if isinstance(block, Charts):
            for chart in block.charts:
                mean = next(trace for trace in chart.figure["data"] if "name" in trace)
                found[chart.title] = (mean["x"], mean["y"])
    return found


def test_a_run_without_repeats_has_no_such_section(run: Path) -> None:
    assert rounds(load(run), None) is None


def test_rounds_with_numbers_of_their_own_end_with_the_final_stage(run: Path) -> None:
    folder = shutil.copytree(run, run.parent / "rounds")
    ends = []
    for number, seed in enumerate(sorted(folder.glob("seed-*"))):
        some = {"accuracy": 0.5 + 0.1 * number, "nll": 1.0, "brier": 0.4, "constant": 3.0}
        stages = {f"round-{at}": {**some, "bought": 10.0 * at, "validation/gain": 1.0} for at in range(3)}
        stages["round-2"]["wrong_labels"] = 0.25
        repeat(seed, stages, {"bought": 30.0, "constant": 3.0, "wrong_labels": 0.3})
        ends.append(json.loads((seed / "fit/result.json").read_text())["metrics"])
    found = drawn(folder)
    assert list(found) == ["Accuracy (%)", "NLL", "bought", "Wrong labels (%)"]
    assert found["bought"] == ([0, 1, 2, 3], [0, 10, 20, 30])
    assert found["Wrong labels (%)"] == ([2, 3], [25, 30])
    mean = 100 * sum(end["accuracy"] for end in ends) / len(ends)
    x, y = found["Accuracy (%)"]
    assert x == [0, 1, 2, 3]
    assert abs(y[3] - mean) < 0.01


def test_repeats_without_numbers_of_their_own_stand_alone(run: Path) -> None:
    folder = shutil.copytree(run, run.parent / "committee")
    for seed in folder.glob("seed-*"):
        repeat(
            seed, {f"squeeze-{at}": {"accuracy": 0.8 + 0.01 * at} for at in range(2)} | {"alone-7": {"accuracy": 1.0}}
        )
    assert drawn(folder) == {"Accuracy (%)": ([0, 1], [80, 81])}


def test_numbers_in_the_middle_of_a_name(run: Path) -> None:
    folder = shutil.copytree(run, run.parent / "cycles")
    for seed in folder.glob("seed-*"):
        stages = {
            f"cycle-{at}-{kind}": {"accuracy": 0.1 * at + 0.05 * (kind == "bi")}
            for at in (1, 2)
            for kind in ("bi", "cross")
        }
        repeat(seed, stages | {"labels-1": {"rows": 5.0}, "labels-2": {"rows": 6.0}})
    section = rounds(load(folder), None)
    assert section is not None
    assert [block.text for block in section.blocks if isinstance(block, Text)][:2] == ["cycle-bi", "cycle-cross"]
    assert sum(isinstance(block, Charts) for block in section.blocks) == 2
