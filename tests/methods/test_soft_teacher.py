import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.data.boxes import BoxData, digit_boxes
from limbeck.errors import LimbeckError
from limbeck.methods.detection.soft_teacher import PseudoBoxes, SoftTeacher
from limbeck.methods.detection.supervised_detection import SupervisedDetection
from limbeck.models.detector import Detector, faster_rcnn
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Plan
from limbeck.stages.settings import FitSettings

PLAN = Plan(num_samples=40, num_classes=10, updates=10, epochs=1)
PARTS = ("rpn_objectness", "rpn_box", "cls", "box")


@pytest.fixture(scope="module")
def data() -> BoxData:
    return digit_boxes(seed=0, size=48, labeled=0.25, train=40, validation=8, test=8, most=2)


@pytest.fixture(scope="module")
def detector(data: BoxData) -> Detector:
    """A detector that has seen enough to be sure of some boxes."""
    torch.manual_seed(0)
    small = {"width": 8, "stride": 4, "anchors": [20], "proposals": 20, "samples": 16, "rpn_samples": 32, "hidden": 32}
    student = faster_rcnn(data.task, **small)  # type: ignore[arg-type]
    objective = SupervisedDetection(student)
    stream = objective.streams(data, 8, 0)
    assert not isinstance(stream, dict)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for number in range(60):
        optimizer.zero_grad()
        torch.stack([term.value for term in objective.terms(stream.batch(number)).values()]).sum().backward()
        optimizer.step()
    return student


def _method(detector: Detector, data: BoxData, **options: Any) -> SoftTeacher:
    return SoftTeacher(copy.deepcopy(detector), data, FitSettings(updates=5, batch_size=2), **options)


def _objective(detector: Detector, data: BoxData, **options: Any) -> tuple[PseudoBoxes, dict[str, dict[str, Tensor]]]:
    """The objective in the middle of training, with thresholds that keep some boxes, and a batch."""
    thresholds = {"score_threshold": 0.12, "rough_threshold": 0.08, "uncertainty_threshold": 0.1}
    objective = _method(detector, data, **{**thresholds, **options}).objective
    objective.begin(PLAN)
    objective.train()
    batch = {name: stream.batch(0) for name, stream in objective.streams(data, 4, 0).items()}
    return objective, batch


def _values(objective: PseudoBoxes, batch: Any) -> dict[str, float]:
    torch.manual_seed(0)
    return {name: float(term.value.detach()) for name, term in objective.terms(batch).items()}  # type: ignore[union-attr]


def test_terms(detector: Detector, data: BoxData) -> None:
    objective, batch = _objective(detector, data)
    values = _values(objective, batch)
    assert set(values) == {*PARTS, *(f"unsup_{name}" for name in PARTS)}
    assert all(value > 0 for value in values.values())
    seen = {name: parts[0] for name, parts in objective.observed.items()}
    assert {"classes/boxes", "offsets/boxes", "classes/precision", "offsets/precision"} < set(seen)
    assert 0 < float(seen["classes/precision"].value) <= 1  # type: ignore[union-attr]
    assert len(batch["unlabeled"]["weak"]) == 4 * len(batch["labeled"]["image"])


def test_no_weight_leaves_supervised_training(detector: Detector, data: BoxData) -> None:
    objective, batch = _objective(detector, data, alpha=0.0)
    values = _values(objective, batch)
    torch.manual_seed(0)
    supervised = SupervisedDetection(objective.student).terms(batch["labeled"])
    assert {name: values[name] for name in PARTS} == {name: float(t.value.detach()) for name, t in supervised.items()}  # type: ignore[union-attr]
    assert not any(values[f"unsup_{name}"] for name in PARTS)


def test_alpha_scales_the_unsupervised_terms(detector: Detector, data: BoxData) -> None:
    one, batch = _objective(detector, data, alpha=1.0)
    three, _ = _objective(detector, data, alpha=3.0)
    first, second = _values(one, batch), _values(three, batch)
    for name in PARTS:
        assert second[f"unsup_{name}"] == pytest.approx(3 * first[f"unsup_{name}"], rel=1e-6)  # float32
        assert second[name] == first[name]


def test_background_weight(detector: Detector, data: BoxData) -> None:
    """By hand: the teacher's background probability of the very boxes, in its own view."""
    soft, batch = _objective(detector, data)
    hard, _ = _objective(detector, data, background_weight="one")
    images = batch["unlabeled"]["strong"]
    teacher_features = soft.averaged.features(images)
    torch.manual_seed(0)
    proposals = soft.student.propose(soft.student.features(images)).boxes
    regions = soft.student.sample_regions(
        proposals, [p[:1] for p in proposals], [torch.zeros(1, dtype=torch.int64)] * len(proposals)
    )
    same = torch.eye(3).expand(len(images), 3, 3)
    weight = soft.reliability(regions, teacher_features, same)
    probabilities = soft.averaged.roi_predict(teacher_features, regions.boxes).logits.softmax(-1)[:, 0]
    background = regions.labels == 0
    assert background.any()
    assert (~background).any()
    torch.testing.assert_close(weight[background], probabilities[background])
    assert (weight[~background] == 1).all()
    assert (hard.reliability(regions, teacher_features, same) == 1).all()
    assert _values(soft, batch)["unsup_cls"] != _values(hard, batch)["unsup_cls"]


def test_box_selection(detector: Detector, data: BoxData) -> None:
    none, batch = _objective(detector, data, uncertainty_threshold=0.0)
    assert _values(none, batch)["unsup_box"] == 0  # u is never below 0
    every, _ = _objective(detector, data, uncertainty_threshold=1e9, rough_threshold=0.12)
    score, _ = _objective(detector, data, uncertainty_threshold=0.0, rough_threshold=0.12, box_selection="score")
    # With every candidate stable and one cut for both, the two selections choose the same boxes.
    assert _values(every, batch) == _values(score, batch)


def test_no_pseudo_boxes(detector: Detector, data: BoxData) -> None:
    objective, batch = _objective(detector, data, rough_threshold=1.0)
    values = _values(objective, batch)
    assert values["unsup_box"] == values["unsup_rpn_box"] == 0
    assert values["unsup_cls"] > 0  # what nobody calls an object is background, as far as the teacher is sure
    torch.stack([term.value for term in objective.terms(batch).values()]).sum().backward()  # type: ignore[union-attr]
    assert all(bool(p.grad.isfinite().all()) for p in objective.student.parameters() if p.grad is not None)
    assert float(objective.observed["classes/precision"][0].count) == 0  # type: ignore[union-attr]


def test_hidden_boxes_are_not_read(detector: Detector, data: BoxData) -> None:
    objective, batch = _objective(detector, data)
    before = _values(objective, batch)
    batch["unlabeled"]["hidden_boxes"] = batch["unlabeled"]["hidden_boxes"].flip(0)
    batch["unlabeled"]["hidden_box_label"] = batch["unlabeled"]["hidden_box_label"].flip(0)
    assert _values(objective, batch) == before
    del batch["unlabeled"]["hidden_boxes"], batch["unlabeled"]["hidden_box_label"]
    objective.observed.clear()
    assert _values(objective, batch) == before
    assert "classes/precision" not in objective.observed


def test_the_teacher_follows_by_the_ramp(detector: Detector, data: BoxData) -> None:
    """Before update k the average keeps min(m, 1 - 1/(k + 1)): 0 (a copy), 1/2, 2/3 ..."""
    objective, _ = _objective(detector, data, ema_decay=0.7)
    (weight,) = [p for name, p in objective.student.named_parameters() if name.endswith("box_predictor.bbox_pred.bias")]
    (mean,) = [p for name, p in objective.averaged.named_parameters() if name.endswith("box_predictor.bbox_pred.bias")]
    assert torch.equal(mean, weight)
    expected = weight.detach().double()
    for number in range(1, 6):
        with torch.no_grad():
            weight.fill_(float(number))
        objective.after_update({})
        keep = min(0.7, 1 - 1 / (number + 1))
        expected = keep * expected + (1 - keep) * number
        torch.testing.assert_close(mean.double(), expected, rtol=1e-6, atol=0)  # float32
    assert not objective.teacher.training
    assert not any(p.requires_grad for p in objective.teacher.parameters())


def test_the_teacher_gets_no_gradient(detector: Detector, data: BoxData) -> None:
    objective, batch = _objective(detector, data)
    torch.stack([term.value for term in objective.terms(batch).values()]).sum().backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert all(p.grad is not None for p in objective.student.parameters())


def test_program(detector: Detector, data: BoxData) -> None:
    method = _method(detector, data, burn_in_updates=3)
    program = method.program()
    first = next(program)
    assert isinstance(first, Fit)
    assert (first.name, first.settings.updates) == ("burn-in", 3)
    assert isinstance(first.objective, SupervisedDetection)
    second = program.send(first.objective.student)
    assert isinstance(second, Fit)
    assert (second.name, second.settings.updates) == ("fit", 5)
    assert second.objective.student is first.objective.student
    assert next(_method(detector, data).program()).name == "fit"


def test_methods_share_their_burn_in(detector: Detector, data: BoxData, tmp_path: Any) -> None:
    from limbeck.stages.stage import Context

    context = Context(tmp_path, "soft-teacher", 0)
    soft = next(_method(detector, data, burn_in_updates=3).program())
    hard = next(_method(detector, data, burn_in_updates=3, box_selection="score", alpha=1.0).program())
    assert soft.identity(context) == hard.identity(context)
    fits = [_method(detector, data, box_selection=kind).program() for kind in ("score", "uncertainty")]
    first, second = (next(program).identity(context) for program in fits)
    assert first != second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, r"alpha is -1\.0; it must be at least 0"),
        ({"unlabeled_ratio": 0}, "unlabeled_ratio is 0; it must be at least 1"),
        ({"jitter_times": 1}, "jitter_times is 1; it must be at least 2"),
        ({"burn_in_updates": -1}, "burn_in_updates is -1; it must be at least 0"),
        ({"ema_decay": 1.5}, r"ema_decay is 1\.5; it must be at most 1"),
    ],
)
def test_wrong_options(detector: Detector, data: BoxData, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        _method(detector, data, **options)


def test_without_unlabelled_images(detector: Detector) -> None:
    labelled = digit_boxes(seed=0, size=48, labeled=1.0, train=4, validation=2, test=2)
    with pytest.raises(LimbeckError, match=r"needs unlabelled images, and there are none: set data\.labeled below 1"):
        _method(detector, labelled)


def test_pseudo_boxes_are_carried_from_the_weak_to_the_strong_view(
    detector: Detector, data: BoxData, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, batch = _objective(detector, data)
    unlabeled = batch["unlabeled"]
    unlabeled["weak_matrix"][:, :2] *= 0.8  # as if the weak view were smaller: the way there and back differ
    learnt: list[list[Tensor]] = []
    sample = objective.student.sample_regions

    def watched(proposals: list[Tensor], boxes: list[Tensor], labels: list[Tensor]) -> Any:
        learnt.append(boxes)
        return sample(proposals, boxes, labels)

    monkeypatch.setattr(objective.student, "sample_regions", watched)
    objective.terms(batch)
    with torch.no_grad():
        features = objective.averaged.features(unlabeled["weak"])
        found = objective.averaged.detect(features)
    carried = 0
    for image in range(len(found.labels)):
        expected = []
        for box in found.boxes[image][found.scores[image] > 0.12].double():
            corners = torch.stack(
                [torch.stack([x, y, torch.ones_like(x)]) for x in box[[0, 2]] for y in box[[1, 3]]], 1
            )
            points = unlabeled["strong_matrix"][image].double() @ (
                torch.linalg.inv(unlabeled["weak_matrix"][image].double()) @ corners
            )
            low, high = points[:2].amin(1).clamp(0, 48), points[:2].amax(1).clamp(0, 48)
            if bool(((high - low) > 1).all()):
                expected.append(torch.cat([low, high]))
        # Labelled images are sampled first, then these for the classes. float32, coordinates up to 48 and beyond.
        torch.testing.assert_close(
            learnt[1][image].double(),
            torch.stack(expected) if expected else torch.zeros(0, 4).double(),
            rtol=0,
            atol=1e-3,
        )
        carried += len(expected)
    assert carried > 3
