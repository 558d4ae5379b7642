import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from limbeck.data.masks import MaskData, digit_masks
from limbeck.errors import LimbeckError
from limbeck.models.segmenter import Segmenter
from limbeck.stages.evaluation.segmentation import count_pixels, report, validate
from limbeck.teachers import Frozen

CPU = torch.device("cpu")


class Bright(nn.Module):
    """Ground where it is dark, a three where it is bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 11, *images.shape[-2:])
        logits[:, 0], logits[:, 4] = 0.6 - images[:, 0], images[:, 0] - 0.6
        return logits * 100


@pytest.fixture(scope="module")
def data() -> MaskData:
    return digit_masks(0, train=8, validation=5, test=20, labeled=0.5)


def bright(data: MaskData) -> Segmenter:
    return Segmenter(Bright(), data.task, mean=(0.0,), std=(1.0,))


def test_counts_are_those_of_all_pixels(data: MaskData) -> None:
    model = bright(data).train()
    matrix = count_pixels(model, data.test, CPU)
    batch = data.test.fetch(torch.arange(20))
    said = torch.where(batch["image"][:, 0] > 0.6, 4, 0)
    for true in range(11):
        for answer in (0, 4):
            assert int(matrix[true, answer]) == int(((batch["mask"] == true) & (said == answer)).sum())
    assert int(matrix.sum()) == 20 * 32 * 48
    assert model.training


def test_report_writes_what_the_page_shows(data: MaskData, tmp_path: Path) -> None:
    model = bright(data)
    metrics = report(model, {"teacher": Frozen(bright(data))}, data, tmp_path, CPU)
    assert set(metrics) == {
        *("miou", "pixel_accuracy", "validation/miou", "validation/pixel_accuracy", "parameters"),
        *("teacher/miou", "teacher/pixel_accuracy"),
    }
    assert metrics["teacher/miou"] == metrics["miou"]
    assert metrics["validation/miou"] == validate(model, data, CPU)["miou"]
    batch = data.test.fetch(torch.arange(20))
    said = torch.where(batch["image"][:, 0] > 0.6, 4, 0)
    assert metrics["pixel_accuracy"] == pytest.approx(float((said == batch["mask"]).double().mean()))
    with safe_open(tmp_path / "segmentation.safetensors", framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        assert tuple(json.loads(file.metadata()["classes"])) == data.classes
    assert found["image"].shape == (12, 1, 32, 48)
    positions = found["index"]
    assert torch.equal(found["truth"].long(), batch["mask"][positions])
    assert torch.equal(found["predicted"].long(), said[positions])
    assert not list(tmp_path.glob("*.part"))


def test_broken_weights_are_named(data: MaskData) -> None:
    model = Segmenter(nn.Conv2d(1, 11, 1), data.task)
    with torch.no_grad():
        model.body.bias.fill_(torch.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(LimbeckError, match="NaN or infinite logits"):
        validate(model, data, CPU)
