import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from limbeck import models
from limbeck.errors import LimbeckError
from limbeck.models.classifier import ImageTask
from limbeck.models.detector import BACKGROUND, Detector, faster_rcnn, unpad

TASK = ImageTask(("cat", "dog"), 3, (40, 56), (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
SMALL = {"width": 8, "stride": 4, "anchors": [8, 16], "proposals": 20, "samples": 16, "rpn_samples": 16, "hidden": 16}
BOXES = [torch.tensor([[4.0, 4.0, 20.0, 24.0], [30.0, 10.0, 50.0, 30.0]]), torch.zeros(0, 4)]
LABELS = [torch.tensor([1, 0]), torch.zeros(0, dtype=torch.int64)]


def _images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, *TASK.size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    return faster_rcnn(TASK, **SMALL).eval()  # type: ignore[arg-type]


def test_detections_are_those_of_torchvision(detector: Detector) -> None:
    """The parts of the network, called as torchvision's own model calls them."""
    images = _images()
    found = detector({"image": images})
    with torch.no_grad():
        maps = detector.body.backbone(detector.normalise(images))
        listed = ImageList(images, [TASK.size] * 2)
        proposals, _ = detector.body.rpn(listed, maps)
        expected, _ = detector.body.roi_heads(maps, proposals, [TASK.size] * 2)
    boxes, labels = unpad(found.boxes, found.labels)
    assert sum(len(part) for part in labels) > 0
    for image in range(2):
        assert torch.equal(boxes[image], expected[image]["boxes"])
        assert torch.equal(labels[image] + 1, expected[image]["labels"])
        assert torch.equal(found.scores[image, : len(boxes[image])], expected[image]["scores"])
        assert not found.scores[image, len(boxes[image]) :].any()


def test_losses_are_those_of_torchvision(detector: Detector) -> None:
    """Objectness and classification of torchvision's training mode; its smooth L1 with beta 0 would be ours."""
    detector.train()
    images = _images()
    targets = [{"boxes": box, "labels": label + 1} for box, label in zip(BOXES, LABELS, strict=True)]
    torch.manual_seed(1)
    ours = detector.losses(images, BOXES, LABELS)
    maps = detector.body.backbone(detector.normalise(images))
    listed = ImageList(images, [TASK.size] * 2)
    # Samples are drawn first for the regions here, and first for the anchors there.
    proposals = detector.propose(detector.features(images)).boxes
    torch.manual_seed(1)
    _, second = detector.body.roi_heads(maps, proposals, [TASK.size] * 2, targets)
    _, first = detector.body.rpn(listed, maps, targets)
    torch.testing.assert_close(ours["cls"].value, second["loss_classifier"])
    torch.testing.assert_close(ours["rpn_objectness"].value, first["loss_objectness"])
    assert set(ours) == {"rpn_objectness", "rpn_box", "cls", "box"}


def test_box_loss_against_the_definition(detector: Detector) -> None:
    detector.train()
    features = detector.features(_images())
    regions = detector.sample_regions([torch.zeros(0, 4)] * 2, BOXES, LABELS)  # the boxes themselves
    assert torch.equal(regions.boxes[0], BOXES[0])
    assert regions.labels.tolist() == [2, 1]
    output = detector.roi_predict(features, regions.boxes)
    # Regions that are their boxes are to stay: the distance is that of the predicted offsets from 0, over 2 regions.
    expected = (output.deltas[0, 1].abs().sum() + output.deltas[1, 0].abs().sum()) / 2
    torch.testing.assert_close(detector.box_loss(output, regions).value, expected)


@pytest.mark.parametrize("boxes", [[torch.zeros(0, 4)] * 2, BOXES])
def test_images_without_boxes(detector: Detector, boxes: list[Tensor]) -> None:
    detector.train()
    labels = [torch.zeros(len(part), dtype=torch.int64) for part in boxes]
    losses = detector.losses(_images(), boxes, labels)
    total = torch.stack([term.value for term in losses.values()]).sum()
    total.backward()
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_no_regions_at_all(detector: Detector) -> None:
    features = detector.features(_images())
    output = detector.roi_predict(features, [torch.zeros(0, 4)] * 2)
    assert output.logits.shape == (0, 3)
    assert output.boxes.shape == (0, 2, 4)
    nothing = torch.full((2, 0), -1)
    assert detector.refine(features, torch.zeros(10, 2, 0, 4), nothing).shape == (10, 2, 0, 4)


def test_refine_takes_the_box_of_the_label(detector: Detector) -> None:
    features = detector.features(_images())
    labels = torch.tensor([[1, -1], [0, 1]])
    copies = torch.stack([torch.stack([BOXES[0], BOXES[0]]) + shift for shift in (0.0, 1.0, 2.0)])
    with torch.no_grad():
        detector.body.roi_heads.box_predictor.bbox_pred.weight.mul_(300)  # offsets that are far from 0
        refined = detector.refine(features, copies, labels)
        assert torch.equal(refined[:, 0, 1], copies[:, 0, 1])  # no box: nothing is computed
        for image, box in ((0, 0), (1, 0), (1, 1)):
            regions = [torch.zeros(0, 4)] * 2
            regions[image] = copies[:, image, box]
            expected = detector.roi_predict(features, regions).boxes[:, labels[image, box]]
            expected = expected.clamp(min=0).minimum(torch.tensor([56.0, 40.0, 56.0, 40.0]))
            torch.testing.assert_close(refined[:, image, box], expected)
            assert not torch.equal(refined[:, image, box], copies[:, image, box])


def test_saved_and_loaded(detector: Detector, tmp_path: Path) -> None:
    loaded = models.load(models.save(detector, tmp_path))
    assert isinstance(loaded, Detector)
    assert loaded.spec == TASK
    for ours, theirs in zip(detector({"image": _images()}), loaded({"image": _images()}), strict=True):
        assert torch.equal(ours, theirs)


def test_grey_images_and_copies() -> None:
    torch.manual_seed(0)
    grey = faster_rcnn(ImageTask(("a",), 1, (32, 32), (0.5,), (0.2,)), **SMALL)  # type: ignore[arg-type]
    twin = copy.deepcopy(grey).eval()
    assert twin({"image": torch.rand(1, 3, 32, 32)}).boxes.shape[0] == 1
    assert BACKGROUND == 0


def test_pyramid() -> None:
    torch.manual_seed(0)
    body = faster_rcnn(TASK, backbone="resnet18", anchors=[8, 16, 32, 64, 128], proposals=8, hidden=8)
    losses = body.losses(_images(), BOXES, LABELS)
    assert all(bool(term.value.isfinite()) for term in losses.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 5}, "stride is 5; it must be 4, 8 or 16"),
        ({"width": 12}, "width is 12; it must be a multiple of 8"),
        ({"anchors": []}, "must be positive"),
        ({"pool": 0}, "pool is 0"),
        ({"proposals": 0}, "top_n.* is 0"),
        ({"weights": "IMAGENET1K_V1"}, "no weights 'IMAGENET1K_V1' of the small backbone"),
        ({"backbone": "resnet18"}, "3 anchors; resnet18 has 5 maps"),
        ({"backbone": "resnet18", "anchors": [8] * 5, "weights": "NONE"}, "cannot load the weights NONE of resnet18"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        faster_rcnn(TASK, **options)  # type: ignore[arg-type]


def test_wrong_images(detector: Detector) -> None:
    with pytest.raises(LimbeckError, match=r"images must be float \[B, 1 or 3, H, W\], got torch.uint8"):
        detector({"image": torch.zeros(1, 3, 40, 56, dtype=torch.uint8)})
