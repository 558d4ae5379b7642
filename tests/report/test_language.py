import csv
import json
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError
from limbeck.report.blocks import Charts, Table
from limbeck.report.folder import load
from limbeck.report.sections.language import language


def seed_folder(
    folder: Path, method: str, *, t: list[float] | None = None, texts: tuple[str, str] = ("a", "b")
) -> None:
    """A finished run of a language model as a fit leaves it."""
    fit = folder / "fit"
    fit.mkdir(parents=True)
    metrics = {"token_nll": 2.25, "perplexity": 9.49, "distinct_5": 0.9, "teacher/token_nll": 1.9}
    result = {"format_version": 1, "method": method, "stage": "fit", "seed": 0, "metrics": metrics}
    (fit / "result.json").write_text(json.dumps(result))
    rows = [
        {"prompt": f"prompt {n}\n<b>", "student": f"{text} says", "teacher": "teacher\nsays"}
        for n, text in enumerate(texts)
    ]
    (fit / "samples.json").write_text(json.dumps({"format_version": 1, "samples": rows}))
    with (fit / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["update", "epoch", "split", "name", "value"])
        writer.writerows([[10 * n, 0.1 * n, "train", "t", value] for n, value in enumerate(t or [])])
    run = {"format_version": 1, "seed": 0, "method": method, "stages": ["fit"], "final": "fit", "seconds": 1.0}
    (folder / "run.json").write_text(json.dumps(run))


def test_scores_curve_and_samples(tmp_path: Path) -> None:
    seed_folder(tmp_path / "seed-0", "taid", t=[0.4, 0.7, 0.95])
    section = language(load(tmp_path), None)
    assert section is not None
    scores, charts, samples = section.blocks[:3]
    assert isinstance(scores, Table)
    assert scores.columns[1:] == ("Token NLL", "Perplexity", "Different 5-grams in samples")
    assert [row[0] for row in scores.rows] == ["taid", "teacher"]
    assert scores.rows[0][1].startswith("2.25")
    assert scores.rows[1][1].startswith("1.9")
    assert isinstance(charts, Charts)
    assert charts.charts[0].figure["data"][0]["y"] == [0.4, 0.7, 0.95]
    assert "taid goes from 0.40 to 0.95" in charts.charts[0].alt
    assert isinstance(samples, Table)
    assert samples.columns == ("prompt", "teacher", "taid")
    assert samples.rows[0] == ("prompt 0⏎ <b>", "teacher⏎ says", "a says")


def test_without_a_schedule_there_is_no_curve_and_without_text_no_section(tmp_path: Path) -> None:
    seed_folder(tmp_path / "sft" / "seed-0", "sft")
    section = language(load(tmp_path / "sft"), None)
    assert section is not None
    assert not any(isinstance(block, Charts) for block in section.blocks)
    (tmp_path / "sft" / "seed-0" / "fit" / "samples.json").unlink()
    assert language(load(tmp_path / "sft"), None) is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    seed_folder(tmp_path / "seed-0", "sft")
    (tmp_path / "seed-0" / "fit" / "samples.json").write_text('{"samples": [{"prompt": 1}]}')
    with pytest.raises(LimbeckError, match=r"samples\.json does not hold samples"):
        language(load(tmp_path), None)
