import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr

from limbeck.errors import LimbeckError
from limbeck.report.blocks import Charts
from limbeck.report.folder import load
from limbeck.report.sections.similarity import similarity

STAGES = {"start-fit": 0.5, "cycle-1-bi-labels": 0.55, "cycle-1-cross": 0.6, "cycle-1-cross-labels": 0.65, "best": 0.7}


def scores(*names: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    gold = torch.rand(50, generator=generator)
    made = {name: gold + 0.3 * torch.randn(50, generator=generator) for name in names}
    return {"gold": gold, "index": torch.arange(50), **made}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in (0, 1):
        here = tmp_path / f"seed-{seed}"
        for name, value in STAGES.items():
            stage = here / name
            stage.mkdir(parents=True)
            result = {"format_version": 1, "metrics": {"spearman": value + 0.02 * seed}, "updates": 1, "seconds": 1.0}
            (stage / "result.json").write_text(json.dumps(result))
            kinds = ("score", "bi_score", "cross_score") if name == "best" else ("score",)
            file = "labels.safetensors" if "labels" in name else "similarity.safetensors"
            save_file(scores(*kinds), stage / file)
        (here / "best" / "choice.json").write_text(json.dumps({"format_version": 1, "kept": "cross", "number": {}}))
        run = {"format_version": 1, "method": "trans-encoder", "seed": seed, "stages": list(STAGES), "final": "best"}
        (here / "run.json").write_text(json.dumps({**run, "teacher": None, "seconds": 1.0, "versions": {}}))
    return tmp_path


def test_predicted_against_gold_and_the_course_over_the_stages(folder: Path) -> None:
    section = similarity(load(folder), None)
    assert section is not None
    scatters, course = (block for block in section.blocks if isinstance(block, Charts))
    kept = scores("score", "bi_score", "cross_score")
    expected = [spearmanr(kept[f"{kind}_score"], kept["gold"]).statistic for kind in ("bi", "cross")]
    assert [chart.title for chart in scatters.charts] == [
        f"trans-encoder: bi: Spearman {expected[0]:.3f}",
        f"trans-encoder: cross, kept: Spearman {expected[1]:.3f}",
    ]
    assert len(scatters.charts[0].figure["data"][0]["x"]) == 50

    # One line a kind, labels apart from models; the final stage repeats one of them and is left out.
    lines = {tuple(t["x"]): (t["y"], t["line"]["dash"]) for t in course.charts[0].figure["data"]}
    assert lines == {
        ("start-fit",): ([0.51], "solid"),
        ("cycle-1-bi-labels",): ([0.56], "dot"),
        ("cycle-1-cross",): ([0.61], "solid"),
        ("cycle-1-cross-labels",): ([0.66], "dot"),
    }
    assert [name for name, _ in course.keys] == ["start-fit", "bi", "cross"]


def test_other_runs_have_no_such_section(folder: Path) -> None:
    for seed in (0, 1):
        (folder / f"seed-{seed}" / "best" / "similarity.safetensors").unlink()
    assert similarity(load(folder), None) is None


def test_a_damaged_file_is_named(folder: Path) -> None:
    file = folder / "seed-0" / "best" / "similarity.safetensors"
    file.write_bytes(b"nonsense")
    with pytest.raises(LimbeckError, match=r"best/similarity\.safetensors cannot be read"):
        similarity(load(folder), None)
    save_file({"score": torch.zeros(2)}, file)
    with pytest.raises(LimbeckError, match=r"does not hold score and gold, only \['score'\]"):
        similarity(load(folder), None)
