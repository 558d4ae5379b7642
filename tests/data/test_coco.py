import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.coco import coco
from limbeck.errors import LimbeckError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten training pictures and one to test on: a white rectangle, a crowd and a box without area in each."""
    (tmp_path / "annotations").mkdir()
    for name, count in (("train2017", 10), ("val2017", 1)):
        (tmp_path / name).mkdir()
        images, annotations = [], []
        for number in range(count):
            pixels = np.zeros((30, 60, 3), dtype=np.uint8)
            pixels[6:18, 12:42] = 255
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
            images.append({"id": 100 + number, "file_name": f"{number}.png", "height": 30, "width": 60})
            boxes = (([12, 6, 30, 12], 0), ([0, 0, 5, 5], 1), ([3, 3, 0, 5], 0))
            annotations += [
                {"id": len(annotations) + k, "image_id": 100 + number, "category_id": 7, "bbox": box, "iscrowd": crowd}
                for k, (box, crowd) in enumerate(boxes)
            ]
        categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_boxes_lie_on_the_canvas(root: Path) -> None:
    data = coco(seed=0, root=str(root), size=[20, 40], labeled=0.5, validation=2)
    assert data.unlabeled is not None
    assert [len(part) for part in (data.train, data.unlabeled, data.validation, data.test)] == [4, 4, 2, 1]
    assert data.left_out == 22
    batch = data.train.fetch(torch.arange(4))
    assert batch["image"].shape == (4, 3, 20, 40)
    # 30 x 60 pixels become 20 x 40: two thirds.
    torch.testing.assert_close(batch["boxes"][0], torch.tensor([[8.0, 4.0, 28.0, 12.0]]))
    assert batch["box_label"].tolist() == [[1]] * 4
    assert (batch["image"][:, :, 5:11, 9:27] == 1).all()
    assert data.classes == ("cat", "dog")
    assert data.task.size == (20, 40)


def test_the_rest_of_the_canvas_is_grey(root: Path) -> None:
    image = coco(seed=0, root=str(root), size=[40, 40], validation=2).test.fetch(torch.tensor([0]))["image"]
    assert (image[:, :, 20:] == 128 / 255).all()
    assert not (image[:, :, :20] == 128 / 255).any()


def test_wrong_input(root: Path) -> None:
    for options, message in (
        ({"size": [40]}, r"size is \[40\]"),
        ({"labeled": 0.0}, r"labeled is 0\.0"),
        ({"validation": 10}, "validation is 10; 10 training images allow 1 to 9"),
    ):
        with pytest.raises(LimbeckError, match=message):
            coco(**{"seed": 0, "root": str(root), "size": [40, 40], "validation": 2, **options})  # type: ignore[arg-type]
    (root / "annotations" / "instances_val2017.json").write_text("{}")
    with pytest.raises(
        LimbeckError, match=r"instances_val2017\.json: not annotations in the layout of COCO \(KeyError"
    ):
        coco(seed=0, root=str(root), size=[40, 40], validation=2)
    with pytest.raises(LimbeckError, match="does not exist"):
        coco(seed=0, root=str(root / "nothing"), size=[40, 40])
