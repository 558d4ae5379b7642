import contextlib
import io
import math

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from limbeck.errors import LimbeckError
from limbeck.metrics.detection import Found, Truth, box_precision, iou_with_truth, mean_average_precision

CLASSES = ("a", "b", "c")


def _boxes(rng: np.random.Generator, count: int) -> torch.Tensor:
    corner, size = rng.uniform(0, 60, (count, 2)), rng.uniform(4, 40, (count, 2))
    return torch.from_numpy(np.concatenate([corner, corner + size], 1)).float()


def _scenes(seed: int, images: int = 12) -> tuple[list[Found], list[Truth]]:
    """True boxes, and found ones near them, far from them and of the wrong class; some images are empty."""
    rng = np.random.default_rng(seed)
    found: list[Found] = []
    truth: list[Truth] = []
    for _ in range(images):
        boxes, labels = _boxes(rng, rng.integers(0, 5)), torch.empty(0, dtype=torch.int64)
        labels = torch.from_numpy(rng.integers(0, 2, len(boxes)))
        near = boxes + torch.from_numpy(rng.normal(0, 2, boxes.shape)).float()
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        far = _boxes(rng, rng.integers(0, 4))
        said = torch.cat([labels, torch.from_numpy(rng.integers(0, 3, len(far)))])
        truth.append((boxes, labels))
        found.append((torch.cat([near, far]), said, torch.from_numpy(rng.uniform(size=len(said))).float()))
    return found, truth


@pytest.mark.parametrize("seed", range(3))
def test_against_pycocotools(seed: int) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found, truth = _scenes(seed)

    def rows(boxes: torch.Tensor) -> list[list[float]]:
        return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()]

    annotations = [
        {"image_id": i, "category_id": int(c), "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for i, (boxes, labels) in enumerate(truth)
        for b, c in zip(rows(boxes), labels, strict=True)
    ]
    results = [
        {"image_id": i, "category_id": int(c), "bbox": b, "score": float(s)}
        for i, (boxes, labels, scores) in enumerate(found)
        for b, c, s in zip(rows(boxes), labels, scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(truth))],
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
            "annotations": [{"id": number, **row} for number, row in enumerate(annotations, start=1)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = mean_average_precision(found, truth, CLASSES)
    # The same arithmetic in another program; differences of box coordinates are rounded in another order.
    for name, place in (("map", 0), ("map_50", 1), ("map_75", 2)):
        assert metrics[name] == pytest.approx(evaluation.stats[place], abs=1e-6)
    assert set(metrics) == {"map", "map_50", "map_75", "map/a", "map/b"}  # there is no true box of class c


def test_limits() -> None:
    _, truth = _scenes(0)
    right = [(boxes, labels, torch.ones(len(labels))) for boxes, labels in truth]
    assert mean_average_precision(right, truth, CLASSES)["map"] == pytest.approx(1.0)
    nothing = [(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))] * len(truth)
    assert mean_average_precision(nothing, truth, CLASSES)["map"] == 0
    empty = [(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))] * len(truth)
    assert math.isnan(mean_average_precision(right, empty, CLASSES)["map"])
    with pytest.raises(LimbeckError, match="in 11 images, and there is the truth of 12"):
        mean_average_precision(right[1:], truth, CLASSES)


def test_iou_between_three_quarters_and_a_half() -> None:
    # Boxes of 10 x 10 and 10 x 6: IoU 0.6, right at 0.50, 0.55 and 0.60 of the ten thresholds.
    truth = [(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([1]))]
    found = [(torch.tensor([[0.0, 0.0, 10.0, 6.0]]), torch.tensor([1]), torch.tensor([0.5]))]
    metrics = mean_average_precision(found, truth, CLASSES)
    assert (metrics["map_50"], metrics["map_75"]) == (1.0, 0.0)
    assert metrics["map"] == pytest.approx(0.3)


def test_iou_against_torchvision() -> None:
    rng = np.random.default_rng(0)
    boxes, truth = _boxes(rng, 9), _boxes(rng, 5)
    labels, true_labels = torch.arange(9) % 3, torch.arange(5) % 2
    every = box_iou(boxes, truth)
    expected = [max(float(every[i, j]) * bool(labels[i] == true_labels[j]) for j in range(5)) for i in range(9)]
    assert max(expected) > 0.1
    found = iou_with_truth(boxes, labels, truth, true_labels)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)  # float32


def test_padding_matches_nothing() -> None:
    box = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]])
    none = torch.tensor([[-1]])
    assert float(iou_with_truth(box, none, box, none)) == 0
    assert float(iou_with_truth(box, torch.tensor([[2]]), box, torch.tensor([[2]]))) == 1
    assert iou_with_truth(box, none, torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64)).tolist() == [[0.0]]
    assert iou_with_truth(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), box, none).shape == (1, 0)


def test_box_precision() -> None:
    iou, used = torch.tensor([0.9, 0.5, 0.4, 1.0]), torch.tensor([True, True, True, False])
    assert float(box_precision(iou, used).value) == pytest.approx(2 / 3)
    assert float(box_precision(iou, used, 0.75).value) == pytest.approx(1 / 3)
    assert float(box_precision(iou, torch.zeros(4, dtype=torch.bool)).count) == 0
