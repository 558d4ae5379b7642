import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.data.boxes import BoxData, digit_boxes
from limbeck.errors import LimbeckError
from limbeck.labels.boxes import Detections
from limbeck.models.detector import Detector, Features, faster_rcnn
from limbeck.stages.evaluation import evaluation
from limbeck.stages.evaluation.detection import FILE, as_labels, average_precision, find_boxes

CPU = torch.device("cpu")


class Oracle(Detector):
    """Finds the true boxes of a data set, each moved and scored as the test asks."""

    def __init__(self, data: BoxData, shift: float = 0.0, score: float = 0.95) -> None:
        super().__init__(faster_rcnn(data.task, width=8, anchors=[20], hidden=8).body, data.task)
        self.answers: dict[float, tuple[torch.Tensor, torch.Tensor]] = {}
        for part in (data.test, data.validation, data.unlabeled):
            assert part is not None
            batch = part.fetch(torch.arange(len(part)))
            hidden = "hidden_" if "hidden_boxes" in batch else ""
            for image, boxes, labels in zip(
                batch["image"], batch[f"{hidden}boxes"], batch[f"{hidden}box_label"], strict=True
            ):
                self.answers[float(image.sum())] = boxes + shift, labels
        self.score = score

    def features(self, images: torch.Tensor) -> Features:
        return Features({"sum": images.sum((1, 2, 3))}, (images.shape[-2], images.shape[-1]))

    def detect(self, features: Features) -> Detections:
        rows = [self.answers[float(key)] for key in features.maps["sum"]]
        boxes, labels = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
        return Detections(boxes, labels, torch.where(labels >= 0, self.score, 0.0))

    def refine(self, features: Features, boxes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return boxes


@pytest.fixture(scope="module")
def data() -> BoxData:
    return digit_boxes(seed=0, size=48, labeled=0.5, train=24, validation=8, test=8, most=2)


def test_an_oracle_is_perfect(data: BoxData, tmp_path: Path) -> None:
    metrics = evaluation("detection").report(Oracle(data), {}, data, tmp_path, CPU)
    for name in (
        "map",
        "map_50",
        "map_75",
        "validation/map",
        "pseudo_precision",
        "pseudo_precision_75",
        "pseudo_recall",
    ):
        assert metrics[name] == pytest.approx(1.0), name
    assert metrics["parameters"] > 0
    written = load_file(tmp_path / FILE)
    assert int(written["count"].sum()) == len(written["boxes"]) == len(written["truth"])
    assert torch.equal(written["index"], data.test.indices)


def test_moved_boxes_are_worse(data: BoxData) -> None:
    found = find_boxes(Oracle(data, shift=2.0), data.test)
    metrics = average_precision(found, data.classes)
    assert metrics["map_75"] < metrics["map_50"]
    labels = as_labels(find_boxes(Oracle(data, shift=2.0), data.unlabeled, jitter=True))  # type: ignore[arg-type]
    assert labels["pseudo_precision_75"] < labels["pseudo_precision"]
    # The regressor returns its input and every score is the same: neither ranks anything by more than its draws.
    assert labels["score_spearman"] == 0


def test_without_confident_boxes_nothing_is_said_of_them(data: BoxData) -> None:
    assert data.unlabeled is not None
    metrics = as_labels(find_boxes(Oracle(data, score=0.4), data.unlabeled, jitter=True))
    assert metrics == {"pseudo_recall": 0.0}


def test_jitter_is_the_same_every_time_and_leaves_the_random_state(data: BoxData) -> None:
    assert data.unlabeled is not None
    oracle = Oracle(data)
    state = torch.get_rng_state()
    first, second = (torch.cat(find_boxes(oracle, data.unlabeled, jitter=True).uncertainty) for _ in range(2))
    assert torch.equal(first, second)
    assert (first > 0).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(math.isnan(u) for u in torch.cat(find_boxes(oracle, data.unlabeled).uncertainty).tolist())


def test_validation_is_what_the_report_says_of_it(data: BoxData, tmp_path: Path) -> None:
    oracle = Oracle(data, shift=1.0)
    metrics = evaluation("detection").report(oracle, {"teacher": Oracle(data)}, data, tmp_path, CPU)
    values = evaluation("detection").validate(oracle, data, CPU)
    assert values
    assert {name: metrics[f"validation/{name}"] for name in values} == values
    assert metrics["teacher/map"] == pytest.approx(1.0)


def test_broken_weights(data: BoxData) -> None:
    with pytest.raises(LimbeckError, match="boxes that are no numbers, first for index 0"):
        find_boxes(Oracle(data, shift=math.nan), data.test)
