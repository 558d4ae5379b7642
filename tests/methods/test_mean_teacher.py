"""The mean teacher's terms against references of their own, and what it reports."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from limbeck import models
from limbeck.data.masks import MaskData, digit_masks
from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Mean
from limbeck.methods.segmentation.mean_teacher import MeanTeacher
from limbeck.methods.segmentation.supervised_segmentation import SupervisedSegmentation
from limbeck.models.segmenter import Segmenter
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Objective, Plan
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, drive

PLAN = Plan(num_samples=40, num_classes=11, updates=6, epochs=1.0)


@pytest.fixture(scope="module")
def data() -> MaskData:
    return digit_masks(0, train=40, validation=6, test=6, labeled=0.25)


def student(data: MaskData) -> Segmenter:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("unet_segmenter", data.task, width=4, depth=2)
    assert isinstance(model, Segmenter)
    return model


def ready(data: MaskData, **options: Any) -> tuple[MeanTeacher, dict[str, dict[str, torch.Tensor]]]:
    """An objective whose teacher says something of its own, and a batch."""
    objective = MeanTeacher(student(data), **{"mix": "none", "colours": False, **options})
    objective.begin(PLAN)
    objective.train()
    with torch.no_grad():
        for weight in objective.teacher.model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    return objective, {name: stream.batch(0) for name, stream in objective.streams(data, 4, 0).items()}


def pixels(logits: torch.Tensor) -> np.ndarray[Any, Any]:
    """Log-probabilities [B, H, W, C] in float64."""
    return logits.double().log_softmax(1).movedim(1, -1).detach().numpy()


def picked(log_p: np.ndarray[Any, Any], classes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    picks: np.ndarray[Any, Any] = np.take_along_axis(log_p, np.maximum(classes, 0)[..., None], -1)[..., 0]
    return picks


@pytest.mark.parametrize("rows", [(0, 0), (3, 5)])
def test_confidence_against_numpy(data: MaskData, rows: tuple[int, int]) -> None:
    objective, batch = ready(data, threshold=0.95, ignored_top=rows[0], ignored_bottom=rows[1])
    # Bordered masks: some labelled pixels have no class.
    batch["labeled"]["mask"][:, :4] = -1
    terms = objective.terms(batch)
    p = np.exp(pixels(objective.teacher(batch["unlabeled"]).logits))
    share = (p.max(-1) >= 0.95).mean()
    assert 0.05 < share < 0.95, "the threshold must lie among the confidences for this test to mean anything"
    images = torch.cat([batch["labeled"]["image"], batch["unlabeled"]["image"]])
    log_q = pixels(objective.student(images).logits)
    losses = -picked(log_q[4:], p.argmax(-1))
    losses[:, : rows[0]] = 0
    losses[:, losses.shape[1] - rows[1] :] = 0
    mask = batch["labeled"]["mask"].numpy()
    assert all(isinstance(term, Mean) for term in terms.values())
    # float32 networks against float64 sums of some thousand pixels.
    assert float(terms["self_training"].value.detach()) == pytest.approx(share * losses.mean(), rel=1e-5)
    assert float(terms["ce"].value.detach()) == pytest.approx(-picked(log_q[:4], mask)[mask >= 0].mean(), rel=1e-5)


@pytest.mark.parametrize("percent", [30.0, 80.0, 100.0])
def test_entropy_against_the_formula_of_released_code(data: MaskData, percent: float) -> None:
    objective, batch = ready(data, selection="entropy", drop_percent=percent)
    term = objective.terms(batch)["self_training"]
    images = batch["unlabeled"]["image"]
    labels = objective.teacher(images).logits.argmax(1)
    # Statistics of the batch, on a copy that may move its running ones.
    twin = student(data)
    twin.load_state_dict(objective.teacher.model.state_dict())
    p = np.exp(pixels(twin.train()(images).logits))
    entropy = -(p * np.log(p)).sum(-1)
    # Rounding may carry a pixel over the threshold; none lies within 1e-6 of it.
    limit = np.percentile(entropy, percent)
    dropped = torch.from_numpy(entropy > limit + 1e-6)
    target = labels.masked_fill(dropped, 255)
    logits = objective.student(torch.cat([batch["labeled"]["image"], images])).logits[4:].double()
    weight = target.numel() / (target != 255).sum()
    expected = weight * F.cross_entropy(logits, target, ignore_index=255)
    assert float(term.value.detach()) == pytest.approx(
        float(expected.detach()), rel=2e-4
    )  # one pixel of 6,144 either way


def test_entropy_leaves_the_teacher_alone(data: MaskData) -> None:
    objective, batch = ready(data, selection="entropy")
    before = {name: value.clone() for name, value in objective.teacher.state_dict().items()}
    objective.terms(batch)
    assert not any(module.training for module in objective.teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in objective.teacher.state_dict().items())


def test_the_teacher_gets_no_gradient_and_the_truth_is_not_read(data: MaskData) -> None:
    found = []
    for shift in (0, 5):
        objective, batch = ready(data, mix="classmix", colours=True, threshold=0.2)
        batch["unlabeled"]["hidden_mask"] = (batch["unlabeled"]["hidden_mask"] + shift) % 11
        torch.manual_seed(0)
        terms = objective.terms(batch)
        torch.stack([term.value for term in terms.values()]).sum().backward()  # type: ignore[union-attr]
        assert all(weight.grad is None for weight in objective.teacher.parameters())
        found.append([weight.grad for weight in objective.student.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("mix", "colours"), [("classmix", False), ("cutmix", False), ("none", True)])
def test_what_the_student_is_shown(data: MaskData, mix: Any, colours: bool) -> None:
    objective, batch = ready(data, mix=mix, colours=colours)
    labeled, unlabeled = batch["labeled"], batch["unlabeled"]
    pseudo = objective.pseudo_labels(unlabeled)
    torch.manual_seed(0)
    images, labels = objective.mixed(labeled, unlabeled, pseudo)
    changed = (images != unlabeled["image"]).any(1)
    if mix == "none":
        assert changed.any()
        assert torch.equal(labels.predicted(), pseudo.predicted())
        return
    other, truth = labeled["image"], labeled["mask"]
    if mix == "cutmix":
        other, truth = unlabeled["image"].roll(-1, 0), pseudo.predicted().roll(-1, 0)
    assert 0.1 < float(changed.float().mean()) < 0.9
    assert torch.equal(images, torch.where(changed.unsqueeze(1), other, unlabeled["image"]))
    assert torch.equal(labels.predicted()[changed], truth[changed])
    if mix == "classmix":
        assert (labels.weights[changed] == 1).all()


def test_ordinary_mean_teacher_of_the_ramp(data: MaskData) -> None:
    """m = min(1 - 1/(i + 1), mu): the plain mean of the start and all students so far."""
    objective, batch = ready(data)
    objective.begin(PLAN)
    weight, seen = objective.student.body.head.bias, []
    seen.append(weight.detach().clone())
    for _ in range(3):
        with torch.no_grad():
            weight.add_(1.0)
        seen.append(weight.detach().clone())
        objective.terms(batch)
        objective.finish(batch)
    # float32: a few roundings of numbers below 4.
    torch.testing.assert_close(objective.teacher.model.body.head.bias, torch.stack(seen).mean(0), atol=1e-6, rtol=0)


def test_pseudo_accuracy_is_that_of_the_first_half(data: MaskData) -> None:
    objective, batch = ready(data)
    assert objective.summary() == {}
    expected = []
    for number in range(6):
        hidden = torch.where(
            torch.rand(4, 32, 48, generator=torch.Generator().manual_seed(number)) < 0.1 * number,
            objective.teacher(batch["unlabeled"]).logits.argmax(1),
            -1 if number == 3 else 99,
        )
        batch["unlabeled"]["hidden_mask"] = hidden
        labels = objective.teacher(batch["unlabeled"]).logits.argmax(1)
        expected.append(float((labels == hidden).float().mean()))
        objective.terms(batch)
        objective.finish(batch)
    # Means of means in float32.
    assert objective.summary() == {"pseudo_accuracy": pytest.approx(np.mean(expected[:3]), abs=1e-6)}


def run(objective: Objective, data: MaskData, folder: Path, **options: Any) -> dict[str, float]:
    how = FitSettings(
        **{
            "updates": 40,
            "batch_size": 4,
            "log_every": 10,
            "evaluations": 1,
            "accelerator": "cpu",
            "optimizer": {"name": "adamw", "lr": 0.01},
            **options,
        }
    )

    def program() -> Any:
        return (yield Fit("fit", objective, data, how))

    drive(program(), Context(folder=folder, method="mean-teacher", seed=3))
    import json

    metrics: dict[str, float] = json.loads((folder / "fit" / "result.json").read_text())["metrics"]
    return metrics


def test_fits_and_reports(data: MaskData, tmp_path: Path) -> None:
    taught = run(MeanTeacher(student(data), mu=0.9, threshold=0.3), data, tmp_path / "taught")
    alone = run(SupervisedSegmentation(student(data)), data, tmp_path / "alone")
    assert {"miou", "pixel_accuracy", "validation/miou", "parameters", "pseudo_accuracy"} <= set(taught)
    assert "pseudo_accuracy" not in alone
    # The ground is nine pixels of ten; a model that knows no digit says it everywhere.
    assert alone["pixel_accuracy"] > 0.8
    log = (tmp_path / "taught" / "fit" / "metrics.csv").read_text()
    for name in ("loss/ce", "loss/self_training", "coverage", "precision", "pseudo_accuracy"):
        assert f",{name}," in log


def test_supervised_ignores_what_has_no_class(data: MaskData) -> None:
    objective = SupervisedSegmentation(student(data)).eval()
    batch = objective.streams(data, 4, 0).batch(0)  # type: ignore[union-attr]
    batch["mask"][:, :, :20] = -1
    log_q, mask = pixels(objective.student(batch).logits), batch["mask"].numpy()
    (term,) = objective.terms(batch).values()
    assert isinstance(term, Mean)
    assert float(term.value.detach()) == pytest.approx(-picked(log_q, mask)[mask >= 0].mean(), rel=1e-5)
    batch["mask"][:] = -1
    assert float(objective.terms(batch)["ce"].value.detach()) == 0  # type: ignore[union-attr]


def test_refuses_what_cannot_be(data: MaskData) -> None:
    with pytest.raises(LimbeckError, match=r"mu is 1.5; it must lie between 0 and 1"):
        MeanTeacher(student(data), mu=1.5)
    with pytest.raises(LimbeckError, match="drop_percent is -1"):
        MeanTeacher(student(data), drop_percent=-1)
    with pytest.raises(LimbeckError, match="ignored_top is -1 and ignored_bottom 0"):
        MeanTeacher(student(data), ignored_top=-1)
    with pytest.raises(LimbeckError, match="ignored_top 15 and ignored_bottom 120 leave nothing of 32 rows"):
        MeanTeacher(student(data), ignored_top=15, ignored_bottom=120).streams(data, 4, 0)
