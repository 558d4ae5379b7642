import base64
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from limbeck.errors import LimbeckError
from limbeck.report.blocks import Charts, Gallery, Table
from limbeck.report.folder import load
from limbeck.report.sections.generation import FILE, generation

METRICS = {"energy_distance": 0.01, "calls": 1.0}
TEACHER = {"teacher/energy_distance": 0.002, "teacher/calls": 35.0, "teacher/one_step/energy_distance": 0.4}


def run(folder: Path, tensors: dict[str, torch.Tensor] | None) -> Path:
    stage = folder / "seed-0" / "fit"
    stage.mkdir(parents=True)
    result = {"format_version": 1, "metrics": {**METRICS, **TEACHER}, "updates": 1, "seconds": 1.0}
    (stage / "result.json").write_text(json.dumps(result))
    about = {"format_version": 1, "method": "dmd2", "seed": 0, "stages": ["fit"], "final": "fit", "seconds": 1.0}
    (folder / "seed-0" / "run.json").write_text(json.dumps(about))
    if tensors is not None:
        save_file(tensors, stage / FILE)
    return folder


def test_points(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = {name: torch.randn(50, 2) for name in ("student", "data", "teacher", "teacher_one_step")}
    section = generation(load(run(tmp_path / "run", made)), None)
    assert section is not None
    table, charts, _ = section.blocks
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["dmd2", "teacher", "teacher, one call"]
    assert [row[1] for row in table.rows] == ["1", "35", "1"]
    assert table.rows[2][2] == "0.4000"
    assert isinstance(charts, Charts)
    assert [chart.title for chart in charts.charts] == ["data", "dmd2", "teacher", "teacher, one call"]
    drawn = charts.charts[1].figure["data"][0]
    assert drawn["x"] == pytest.approx(made["student"][:, 0].tolist(), rel=1e-4)
    assert "% lie outside" in charts.charts[1].caption


def test_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = {"data": torch.rand(64, 1, 4, 4), "student": torch.rand(64, 1, 4, 4)}
    section = generation(load(run(tmp_path / "run", made)), None)
    assert section is not None
    gallery = section.blocks[1]
    assert isinstance(gallery, Gallery)
    assert [picture.caption for picture in gallery.pictures] == ["data", "dmd2"]
    picture = Image.open(io.BytesIO(base64.b64decode(gallery.pictures[1].source.partition(",")[2])))
    assert picture.size == (440, 440)
    # Five across: image 7 lies in the second row, third column; a pixel is 22 wide.
    pixel = made["student"][7, 0, 3, 1]
    assert picture.getpixel(((2 * 4 + 1) * 22 + 7, (1 * 4 + 3) * 22 + 7)) == int((pixel * 255).round())


def test_nothing_to_show(tmp_path: Path) -> None:
    assert generation(load(run(tmp_path / "run", None)), None) is None


def test_broken_file(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", {"student": torch.rand(4, 2)})
    with pytest.raises(LimbeckError, match="does not hold samples called data"):
        generation(load(folder), None)
    folder = run(tmp_path / "other", {"data": torch.rand(4, 2, 2)})
    with pytest.raises(LimbeckError, match=r"data is \[4, 2, 2\]"):
        generation(load(folder), None)
