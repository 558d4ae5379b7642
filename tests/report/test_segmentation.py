import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import LimbeckError
from limbeck.metrics.segmentation import iou
from limbeck.report.blocks import Charts, Gallery
from limbeck.report.folder import load
from limbeck.report.sections.segmentation import segmentation

from .folders import Digits, run_folder

CLASSES = ("sky", "<b>road</b>", "car")


@pytest.fixture
def segmented(tmp_path: Path, digits: Digits) -> Path:
    """A run of one seed that holds masks in the place of logits."""
    run_folder(tmp_path, digits, "ce", 1, teacher=False)
    stage = next(tmp_path.glob("seed-0/*/predictions.safetensors"))
    stage.unlink()
    truth = torch.tensor([[0, 0, 1], [1, 2, -1]], dtype=torch.int16).expand(8, 2, 3)
    tensors = {
        "confusion": torch.tensor([[14, 2, 0], [0, 16, 0], [8, 0, 0]]),
        "image": torch.zeros(8, 3, 2, 3, dtype=torch.uint8),
        "truth": truth.contiguous(),
        "predicted": torch.tensor([[0, 0, 1], [1, 0, 2]], dtype=torch.int16).expand(8, 2, 3).contiguous(),
        "index": torch.arange(8),
    }
    save_file(tensors, stage.parent / "segmentation.safetensors", {"classes": json.dumps(CLASSES)})
    return tmp_path


def test_bars_and_pictures(segmented: Path) -> None:
    section = segmentation(load(segmented), None)
    assert section is not None
    bars, gallery = section.blocks[:2]
    assert isinstance(bars, Charts)
    assert isinstance(gallery, Gallery)
    (chart,) = bars.charts
    expected = 100 * iou(torch.tensor([[14, 2, 0], [0, 16, 0], [8, 0, 0]]))
    # Sky and road hold as many pixels, the car fewer: it is drawn lowest.
    assert chart.figure["data"][0]["x"] == pytest.approx([float(expected[c]) for c in (2, 0, 1)], rel=1e-4)
    assert "<b>" not in "".join(chart.figure["layout"]["yaxis"]["ticktext"])
    assert chart.table is not None
    assert chart.table.rows[-1][0] == "mean"
    assert len(gallery.pictures) == 6
    # Five pixels have a class, four are right.
    assert gallery.pictures[0].opinions[0].says == "80.0 %"
    assert gallery.pictures[0].source.startswith("data:image/png;base64,")


def test_runs_without_masks_have_no_such_section(tmp_path: Path, digits: Digits) -> None:
    run_folder(tmp_path, digits, "ce", 1, teacher=False)
    assert segmentation(load(tmp_path), None) is None


def test_a_damaged_file_is_named(segmented: Path) -> None:
    path = next(segmented.glob("seed-0/*/segmentation.safetensors"))
    shutil.copy(next(segmented.glob("seed-0/*/result.json")), path)
    with pytest.raises(LimbeckError, match=r"segmentation\.safetensors does not hold"):
        segmentation(load(segmented), None)
