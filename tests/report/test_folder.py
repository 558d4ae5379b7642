import json
import shutil
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError
from limbeck.report.folder import load

from .folders import Digits, run_folder


def test_a_run_is_one_arm_with_one_value_a_seed(run: Path) -> None:
    loaded = load(run)
    (arm,) = loaded.arms
    results = [json.loads((run / f"seed-{i}" / "fit" / "result.json").read_text())["metrics"] for i in range(3)]
    assert arm.metrics["accuracy"] == [result["accuracy"] for result in results]
    assert arm.teacher["nll"] == [result["teacher/nll"] for result in results]
    assert not any(name.startswith("teacher/") for name in arm.metrics)
    assert not loaded.comparison


def test_seeds_come_in_the_order_of_their_numbers(digits: Digits, tmp_path: Path) -> None:
    run_folder(tmp_path, digits, "ce", 2, teacher=False)
    (tmp_path / "seed-1").rename(tmp_path / "seed-10")
    run = json.loads((tmp_path / "seed-10" / "run.json").read_text())
    (tmp_path / "seed-10" / "run.json").write_text(json.dumps({**run, "seed": 10}))
    shutil.copytree(tmp_path / "seed-10", tmp_path / "seed-2")
    (tmp_path / "seed-2" / "run.json").write_text(json.dumps({**run, "seed": 2}))
    assert [seed.seed for seed in load(tmp_path).arms[0].seeds] == [0, 2, 10]


def test_the_stage_that_made_the_teacher_speaks_for_it(digits: Digits, tmp_path: Path) -> None:
    run_folder(tmp_path, digits, "ce", 1, teacher=False)
    seed = tmp_path / "seed-0"
    shutil.copytree(seed / "fit", seed / "teacher-fit")
    run = json.loads((seed / "run.json").read_text())
    run |= {"stages": ["teacher-fit", "fit"], "teacher": "teacher-fit"}
    (seed / "run.json").write_text(json.dumps(run))
    (arm,) = load(tmp_path).arms
    assert arm.teacher["accuracy"] == arm.metrics["accuracy"]


def test_unfinished_seeds_are_named_and_left_out(run: Path) -> None:
    (run / "seed-1" / "run.json").unlink()
    (run / "seed-2" / "fit" / "result.json").unlink()
    loaded = load(run)
    assert loaded.unfinished == ("seed-1", "seed-2")
    assert len(loaded.arms[0].metrics["accuracy"]) == 1


def test_a_comparison_is_read_without_the_folders_of_its_arms(comparison: Path) -> None:
    shutil.rmtree(comparison / "kd")
    loaded = load(comparison)
    assert [arm.name for arm in loaded.arms] == ["ce", "label-smoothing", "kd"]
    assert loaded.arms[2].seeds == ()
    assert len(loaded.arms[2].metrics["accuracy"]) == 5
    assert loaded.featured.name == "label-smoothing"


def test_an_interval_that_is_not_a_number_is_none(comparison: Path) -> None:
    path = comparison / "comparison.json"
    content = json.loads(path.read_text())
    content["differences"][0]["low"] = float("nan")
    content["differences"][1]["low"] = None
    content["differences"][2]["seeds"] = [0, 1, 2]
    path.write_text(json.dumps(content))
    first, second, third, *_ = load(comparison).differences
    assert (first.low, first.high, second.low, third.seeds) == (None, None, None, 3)


def test_errors_name_the_file_and_what_is_wrong(run: Path, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=r"there is no folder .*nowhere"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LimbeckError, match=r"empty holds neither comparison\.json nor a finished"):
        load(tmp_path / "empty")
    path = run / "seed-0" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(LimbeckError, match=r"run\.json has format_version 2; this version reads 1"):
        load(run)
    path.write_text("{")
    with pytest.raises(LimbeckError, match=r"run\.json is not JSON"):
        load(run)


def test_a_broken_comparison_is_named(comparison: Path) -> None:
    path = comparison / "comparison.json"
    content = json.loads(path.read_text())
    del content["arms"][0]["method"]
    path.write_text(json.dumps(content))
    with pytest.raises(LimbeckError, match=r"comparison\.json is not a comparison .*'method'"):
        load(comparison)


def test_a_broken_line_of_metrics_is_named(run: Path) -> None:
    path = run / "seed-0" / "fit" / "metrics.csv"
    path.write_text("update,epoch,split,name,value\n1,0.1,train,loss,2.0\n2,0.2,train,loss,oops\n")
    (stage,) = load(run).arms[0].seeds[0].stages
    with pytest.raises(LimbeckError, match=r"metrics\.csv, line 3"):
        _ = stage.curves
