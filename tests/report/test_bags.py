from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import LimbeckError
from limbeck.report.blocks import Charts, Table, Text
from limbeck.report.folder import load
from limbeck.report.sections.bags import bags

SHARE = torch.tensor([0.0, 0.25, 0.5, 1.0])


@pytest.fixture
def bagged(comparison: Path) -> Path:
    """A comparison in which two of three methods learned from bags of four."""
    for arm in ("label-smoothing", "kd"):
        for seed, folder in enumerate(sorted((comparison / arm).glob("seed-*"))):
            off = 0.1 if arm == "kd" else 0.02 * seed
            tensors = {"share": SHARE, "probability": (SHARE - off).abs(), "counted": SHARE.round()}
            save_file({**tensors, "size": torch.tensor(4)}, folder / "fit" / "bags.safetensors")
    return comparison


def test_predicted_shares_over_true_ones(bagged: Path) -> None:
    section = bags(load(bagged), None)
    assert section is not None
    charts, table, note = section.blocks
    assert isinstance(charts, Charts)
    assert isinstance(table, Table)
    assert isinstance(note, Text)
    assert charts.keys == (("label-smoothing", "arm-2"), ("kd", "arm-3"))
    mean, counted = charts.charts
    equal, smoothed, distilled = mean.figure["data"]
    assert equal["x"] == equal["y"] == [0, 100]
    assert smoothed["x"] == smoothed["y"] == [0, 25, 50, 100]  # its first seed is exact
    assert distilled["y"] == [10, 15, 40, 90]
    assert counted.figure["data"][2]["y"] == [0, 0, 0, 100]
    assert table.rows == (
        ("label-smoothing", "4.0 ± 3.2 %", "18.8 %"),  # 0, 2, 4, 6, 8
        ("kd", "10.0 %", "18.8 %"),
        ("the same share for every bag", "31.2 %", "31.2 %"),
    )
    assert "(4 rows)" in note.text


def test_of_many_bags_some_are_drawn(bagged: Path) -> None:
    share = torch.linspace(0, 1, 1001)
    for path in bagged.glob("kd/*/fit/bags.safetensors"):
        save_file({"share": share, "probability": share / 2, "counted": share.clone(), "size": torch.tensor(4)}, path)
    section = bags(load(bagged), None)
    assert section is not None
    charts, _, note = section.blocks
    assert isinstance(charts, Charts)
    assert isinstance(note, Text)
    drawn = charts.charts[0].figure["data"][2]
    assert (len(drawn["x"]), drawn["x"][0], drawn["x"][-1], drawn["y"][-1]) == (400, 0, 100, 50)
    assert "at most 400 bags" in note.text


def test_runs_without_bags_have_no_such_section(run: Path) -> None:
    assert bags(load(run), None) is None


def test_a_damaged_file_is_named(bagged: Path) -> None:
    save_file({"share": SHARE}, bagged / "kd" / "seed-0" / "fit" / "bags.safetensors")
    with pytest.raises(LimbeckError, match=r"bags\.safetensors does not hold"):
        bags(load(bagged), None)
