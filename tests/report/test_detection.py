import base64
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from limbeck.data.boxes import BoxData, digit_boxes
from limbeck.errors import LimbeckError
from limbeck.report.blocks import Gallery, Table, Text
from limbeck.report.folder import load
from limbeck.report.sections.detection import detection

FILE = "seed-0/fit/boxes.safetensors"


@pytest.fixture(scope="module")
def data() -> BoxData:
    return digit_boxes(seed=0, size=48, labeled=0.5, train=8, validation=4, test=8, most=2)


@pytest.fixture
def found(tmp_path: Path, data: BoxData) -> Path:
    """A run whose student finds every box, and one that nobody believes in, on each image."""
    batch = data.test.fetch(torch.arange(8))
    used = [labels >= 0 for labels in batch["box_label"]]
    truth = [boxes[use] for boxes, use in zip(batch["boxes"], used, strict=True)]
    labels = [label[use] for label, use in zip(batch["box_label"], used, strict=True)]
    unlikely = torch.tensor([[1.0, 1.0, 40.0, 40.0]])
    tensors = {
        "boxes": torch.cat([torch.cat([boxes, unlikely]) for boxes in truth]),
        "labels": torch.cat([torch.cat([label, torch.tensor([3])]) for label in labels]),
        "scores": torch.cat([torch.tensor([0.9] * len(label) + [0.2]) for label in labels]),
        "count": torch.tensor([len(label) + 1 for label in labels]),
        "truth": torch.cat(truth),
        "truth_labels": torch.cat(labels),
        "truth_count": torch.tensor([len(label) for label in labels]),
        "index": data.test.indices,
    }
    stage = tmp_path / "seed-0" / "fit"
    stage.mkdir(parents=True)
    save_file(tensors, tmp_path / FILE, {"classes": json.dumps(list(data.classes))})
    result = {"format_version": 1, "metrics": {"map": 0.75, "map/3": 0.5}, "stage": "fit", "seed": 0}
    (stage / "result.json").write_text(json.dumps(result))
    run = {"format_version": 1, "method": "soft-teacher", "seed": 0, "stages": ["fit"], "final": "fit", "seconds": 1.0}
    (tmp_path / "seed-0" / "run.json").write_text(json.dumps(run))
    return tmp_path


def test_truth_beside_student(found: Path, data: BoxData) -> None:
    section = detection(load(found), data)
    assert section is not None
    table, gallery, note = section.blocks
    assert isinstance(table, Table)
    assert isinstance(gallery, Gallery)
    assert isinstance(note, Text)
    (row,) = table.rows
    assert "75" in row[1]
    assert "50" in row[5]  # of class 3; the others were not measured
    assert len(gallery.pictures) == 6
    drawn = 0
    for picture in gallery.pictures:
        pixels = np.array(Image.open(io.BytesIO(base64.b64decode(picture.source.partition(",")[2]))))
        side = (pixels.shape[1] - 8) // 2
        # What has a low score is not drawn: truth and student look alike.
        assert np.array_equal(pixels[:, :side], pixels[:, side + 8 :])
        truth, student = picture.opinions
        assert truth.says == student.says
        drawn += int((pixels[..., 0] != pixels[..., 1]).any())
    assert drawn == sum(picture.opinions[0].says[0].isdigit() for picture in gallery.pictures)
    assert "3 pink" in note.text


def test_boxes_without_area_are_told(found: Path, data: BoxData) -> None:
    section = detection(load(found), dataclasses.replace(data, left_out=2))
    assert section is not None
    assert isinstance(section.blocks[-1], Text)
    assert "2 boxes without area were left out" in section.blocks[-1].text


def test_other_runs_have_no_such_section(found: Path, data: BoxData) -> None:
    (found / FILE).unlink()
    assert detection(load(found), data) is None


def test_wrong_files(found: Path, data: BoxData) -> None:
    other = digit_boxes(seed=0, size=48, labeled=0.5, train=8, validation=4, test=4, most=2)
    with pytest.raises(LimbeckError, match="not the one the boxes were found on"):
        detection(load(found), other)
    (found / FILE).write_bytes(b"nothing")
    with pytest.raises(LimbeckError, match=r"boxes\.safetensors does not hold the boxes of a detection"):
        detection(load(found), data)
