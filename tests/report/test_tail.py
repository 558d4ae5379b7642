import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from limbeck.data.samples import ImageData
from limbeck.metrics.classification import per_class_accuracy
from limbeck.report.blocks import Chart, Charts, Section
from limbeck.report.folder import Seed, load
from limbeck.report.sections.tail import tail
from tests.report.folders import Digits


def long_tail(digits: Digits) -> ImageData:
    """Of class c the first 90 - 9 c training samples, in order."""
    train = digits.data.train
    kept = [torch.nonzero(train.labels == c)[: 90 - 9 * c, 0] for c in range(10)]
    return dataclasses.replace(digits.data, train=train.subset(torch.cat(kept).sort().values))


def charts(section: Section | None) -> list[Chart]:
    assert section is not None
    return [chart for block in section.blocks if isinstance(block, Charts) for chart in block.charts]


def test_balanced_or_unknown_data_have_no_tail(run: Path, digits: Digits) -> None:
    assert tail(load(run), None) is None
    assert tail(load(run), digits.data) is None


def test_runs_with_a_tail_open_their_data_again(run: Path, digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(run)
    monkeypatch.setattr(Seed, "data", long_tail(digits))
    assert tail(loaded, None) is None  # nothing says that classes differ in size: the data stay closed
    loaded.arms[0].metrics["accuracy_few"] = [0.5] * 3
    given, opened = tail(loaded, long_tail(digits)), tail(loaded, None)
    assert opened is not None
    assert opened == given


def test_students_and_teacher_over_class_size(run: Path, digits: Digits) -> None:
    data = long_tail(digits)
    loaded = load(run)
    students, parts = charts(tail(loaded, data))
    trace = students.figure["data"][0]
    assert trace["x"] == list(data.class_counts)[::-1] == [90 - 9 * c for c in range(9, -1, -1)]
    seeds = [seed.final.predictions for arm in loaded.arms for seed in arm.seeds]
    mean = torch.stack([per_class_accuracy(said.logits, said.label) for said in seeds if said]).mean(0)
    assert trace["y"] == pytest.approx((100 * mean.flip(0)).tolist(), rel=1e-4)
    assert [len(chart.figure["data"]) for chart in (students, parts)] == [1, 1]
    assert students.table is not None
    assert students.table.rows[0][:2] == ("0", "90")


def test_experts_are_drawn_by_name(run: Path, digits: Digits, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "experts")
    for path in folder.glob("seed-*/fit/predictions.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata()
        tensors.pop("teacher_logits", None)
        # One that always says the rarest class, one that is the student.
        tensors["rare_logits"] = torch.eye(10)[9].expand(len(tensors["label"]), -1).contiguous()
        save_file({**tensors, "same_logits": tensors["logits"].clone()}, path, metadata)
    section = tail(load(folder), long_tail(digits))
    students, parts = charts(section)
    rare, same = parts.figure["data"]
    assert rare["y"] == [100, *[0] * 9]
    assert same["y"] == students.figure["data"][0]["y"]
    assert section is not None
    block = section.blocks[1]
    assert isinstance(block, Charts)
    assert [name for name, _ in block.keys] == ["rare", "same"]
    assert "rare 0.0 % and 100.0 %" in parts.alt
