"""SSLD: its losses by hand, the transfer set, and whole runs on digits."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck import models
from limbeck.data.load import load
from limbeck.data.samples import ImageData, Samples, concat
from limbeck.errors import LimbeckError
from limbeck.methods.classification.ssld import SSLD, LabelFreeDistillation
from limbeck.methods.classification.transfer_set import choose_transfer_set
from limbeck.methods.method import Ready
from limbeck.stages.digest import digest
from limbeck.stages.progress import Reporter
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, drive
from limbeck.teachers.frozen import Frozen
from tests.methods.tables import (
    Floats,
    Table,
    assert_equal,
    batch,
    fit,
    log_softmax,
    small,
    softmax,
    student,
    total,
)

LOGITS = arrays(np.float64, (3, 4), elements=st.floats(-20, 20))
SETTINGS = FitSettings(updates=8, batch_size=32, accelerator="cpu", evaluations=1)


@pytest.fixture(scope="module")
def few() -> ImageData:
    """Five labels a class, everything else without."""
    data = load("digits", seed=0, labels_per_class=5, view="none")
    assert isinstance(data, ImageData)
    return data


@settings(deadline=None)
@given(LOGITS, LOGITS)
def test_symmetric_kl_and_its_gradient(s: Floats, t: Floats) -> None:
    """((p_s - p_t) + p_s (log(p_s / p_t) - KL(s || t))) / 2 B."""
    table = Table(s)
    terms = LabelFreeDistillation(table, Frozen(Table(t))).terms(batch([0] * 3))
    total(terms).backward()
    p_s, p_t = softmax(s), softmax(t)
    ratio = log_softmax(s) - log_softmax(t)
    reverse = (p_s * ratio).sum(-1, keepdims=True)
    assert list(terms) == ["kl"]
    # The teacher's logits, of up to 20, are float32.
    expected = ((p_t * -ratio).sum(-1) + reverse[:, 0]).mean() / 2
    np.testing.assert_allclose(total(terms).item(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(table.gradient(), ((p_s - p_t) + p_s * (ratio - reverse)) / 6, atol=1e-5)


@settings(deadline=None)
@given(LOGITS, LOGITS)
def test_soft_cross_entropy_and_its_gradient(s: Floats, t: Floats) -> None:
    """(p_s - p_t) / B, the gradient of the forward KL."""
    table = Table(s)
    terms = LabelFreeDistillation(table, Frozen(Table(t)), loss="soft_cross_entropy").terms(batch([0] * 3))
    total(terms).backward()
    expected = -(softmax(t) * log_softmax(s)).sum(-1).mean()
    np.testing.assert_allclose(total(terms).item(), expected, rtol=1e-5, atol=1e-5)  # float32 logits of up to 20
    np.testing.assert_allclose(table.gradient(), (softmax(s) - softmax(t)) / 3, atol=1e-6)


def test_published_case() -> None:
    p_s, p_t = np.array([[0.5, 0.3, 0.2]]), np.array([[0.7, 0.2, 0.1]])
    for loss, expected in (("symmetric_kl", 0.0885778), ("soft_cross_entropy", 0.8869414)):
        objective = LabelFreeDistillation(Table(np.log(p_s)), Frozen(Table(np.log(p_t))), loss=loss)  # type: ignore[arg-type]
        assert total(objective.terms(batch([0]))).item() == pytest.approx(expected, abs=2e-7)  # float32 teacher


def test_no_label_is_read(few: ImageData, tmp_path: Path) -> None:
    """Neither the labels of the training images nor those that are hidden."""
    assert few.unlabeled is not None
    assert few.unlabeled.hidden_labels is not None
    turned = few.unlabeled.subset(range(len(few.unlabeled)))
    turned.hidden_labels = few.unlabeled.hidden_labels.flip(0)
    other = dataclasses.replace(few, train=few.train.relabel(few.train.labels * 0), unlabeled=turned)
    objectives = [LabelFreeDistillation(student(few), Frozen(student(few, seed=1))) for _ in range(2)]
    assert_equal(fit(objectives[0], few, tmp_path / "true"), fit(objectives[1], other, tmp_path / "other"))
    stream = objectives[0].streams(few, 50, seed=0)
    assert sorted(stream.samples.indices.tolist()) == sorted([*few.train.indices, *few.unlabeled.indices])
    assert bool((stream.samples.labels == -1).all())


def test_precision_of_the_teacher_is_observed(few: ImageData) -> None:
    objective = LabelFreeDistillation(student(few), Frozen(student(few, seed=1)))
    some = objective.streams(few, 100, seed=0).batch(0)
    objective.terms(some)
    (seen,) = objective.observed["precision"]
    with torch.no_grad():
        right = objective.teacher(some).logits.argmax(1) == some["hidden_label"]
    assert seen.value.item() == pytest.approx(right.float().mean().item())  # type: ignore[union-attr]


def test_teacher_with_batch_statistics(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    network = student(data, seed=1, dropout=0.5)
    twin = student(data, seed=1)  # the same weights, no dropout
    objectives = {
        mode: LabelFreeDistillation(student(data), Frozen(network), teacher_mode=mode)  # type: ignore[arg-type]
        for mode in ("eval", "batch_stats")
    }
    some = data.train.fetch(torch.arange(40))
    with torch.no_grad():
        for mode, objective in objectives.items():
            said = twin.train(mode == "batch_stats")(some).logits
            twin.eval()
            assert torch.equal(objective.train().labeller(some).logits, said)
            assert list(objective.teachers()) == ["teacher"]
            twin.load_state_dict(student(data, seed=1).state_dict())  # its statistics moved
    before = digest(network)
    weights = [fit(objective, data, tmp_path / mode, updates=3) for mode, objective in objectives.items()]
    assert digest(network) == before
    assert not any(module.training for module in network.modules())
    with pytest.raises(AssertionError):
        assert_equal(*weights)


# the transfer set


def choose(
    data: ImageData, network: Any, k: int, marks: torch.Tensor, folder: Path
) -> tuple[Samples, dict[str, float]]:
    context = Context(folder, "ssld", seed=0, reporter=Reporter(quiet=True))
    reference = Frozen(network, classes=data.classes)
    found, scores = drive(choose_transfer_set(data, reference, k, marks, SETTINGS), context)
    assert found.train is data.train
    return found.unlabeled, scores


def test_what_is_kept_of_the_pool(few: ImageData, nearest_mean: Any, tmp_path: Path) -> None:
    """Against sorting the images of each class one by one; marked images are out whatever their score."""
    pool = few.unlabeled
    assert pool is not None
    assert pool.hidden_labels is not None
    marks = torch.rand(len(pool), generator=torch.Generator().manual_seed(0)) < 0.2
    with torch.no_grad():
        p = nearest_mean(pool.fetch(torch.arange(len(pool)))).logits.softmax(-1)
    expected: list[int] = []
    for label in range(10):
        mine = [row for row in range(len(pool)) if int(p[row].argmax()) == label and not marks[row]]
        expected += sorted(mine, key=lambda row: -float(p[row].max()))[:7]
    chosen, scores = choose(few, nearest_mean, 7, marks, tmp_path)
    assert sorted(chosen.indices.tolist()) == sorted(pool.indices[expected].tolist())
    assert scores["pool/size"] == len(pool)
    assert scores["pool/duplicates"] == int(marks.sum())
    assert scores["selected/size"] == len(expected) <= 70
    assert scores["pool/outliers"] == scores["selected/outliers"] == 0
    everything, _ = choose(few, nearest_mean, len(pool), ~marks, tmp_path / "rest")
    assert len(everything) == int(marks.sum())
    with pytest.raises(LimbeckError, match=r"all \d+ unlabelled images are marked"):
        choose(few, nearest_mean, 7, torch.ones(len(pool), dtype=torch.bool), tmp_path / "none")


def test_images_of_no_class_fall_behind(few: ImageData, nearest_mean: Any, tmp_path: Path) -> None:
    """All but grey images among the pool: the teacher is less sure of them."""
    pool = few.unlabeled
    assert pool is not None
    images = 0.3 + 0.1 * torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    junk = Samples(images, torch.full((200,), -1), few.classes, hidden_labels=torch.full((200,), -1))
    data = dataclasses.replace(few, unlabeled=concat([pool, junk]))
    marks = torch.zeros(len(pool) + 200, dtype=torch.bool)
    _, scores = choose(data, nearest_mean, 20, marks, tmp_path)
    assert scores["pool/outliers"] == pytest.approx(200 / (len(pool) + 200))
    assert scores["selected/outliers"] < 0.2 * scores["pool/outliers"]


def test_duplicates_of_held_out_images_are_found(few: ImageData) -> None:
    copies = concat([few.test.subset([3, 40]), few.validation.subset([5])]).unlabel()
    assert few.unlabeled is not None
    data = dataclasses.replace(few, unlabeled=concat([few.unlabeled, copies]))
    made = method(data)
    marks = made.duplicates(data.unlabeled)  # type: ignore[arg-type]
    assert marks.nonzero()[:, 0].tolist() == [len(few.unlabeled) + n for n in range(3)]
    assert not method(data, duplicate_similarity=None).duplicates(data.unlabeled).any()  # type: ignore[arg-type]


# programs


def method(data: ImageData, **changes: Any) -> SSLD:
    options: dict[str, Any] = {"teacher": Ready(student(data, seed=1)), "k": 20}
    return SSLD(data=data, student=student(data), fit=SETTINGS, finetuning=SETTINGS, **{**options, **changes})


def run(made: SSLD, folder: Path) -> tuple[Context, Any]:
    context = Context(folder, "ssld", seed=0, reporter=Reporter(quiet=True))
    return context, drive(made.program(), context)


def test_stages(few: ImageData, tmp_path: Path) -> None:
    context, kept = run(method(few), tmp_path / "both")
    assert context.stages == ["score", "distil", "finetune"]
    result = json.loads((tmp_path / "both/finetune/result.json").read_text())["metrics"]
    assert few.unlabeled is not None
    assert result["pool/size"] == len(few.unlabeled)
    assert 0 < result["selected/size"] <= 200
    assert "teacher/accuracy" in result
    context, first = run(method(few, finetune=False), tmp_path / "one")
    assert context.stages == ["score", "distil"]
    stored = models.load(tmp_path / "both/distil/model")
    assert digest(first) == digest(stored) != digest(kept)
    # Without a pool the training images are all there is.
    context, _ = run(method(dataclasses.replace(few, unlabeled=None)), tmp_path / "none")
    assert context.stages == ["distil", "finetune"]


def test_stage_2_sees_the_training_images_only(few: ImageData, tmp_path: Path) -> None:
    made = method(few)
    program, artefact, seen = made.program(), None, {}
    context = Context(tmp_path, "ssld", seed=0, reporter=Reporter(quiet=True))
    while True:
        try:
            stage: Any = program.send(artefact)
        except StopIteration:
            break
        if stage.name != "score":
            samples = stage.objective.streams(stage.data, 10, 0).samples
            seen[stage.name] = sorted(samples.indices.tolist())
        stage.run(tmp_path / stage.name, context)
        artefact = stage.load(tmp_path / stage.name)
    assert seen["finetune"] == sorted(few.train.indices.tolist())
    assert set(seen["finetune"]) < set(seen["distil"])


def test_a_reference_chooses_in_the_teachers_place(few: ImageData, nearest_mean: Any, tmp_path: Path) -> None:
    _, _ = run(method(few, reference=Ready(nearest_mean), finetune=False), tmp_path / "other")
    _, _ = run(method(few, finetune=False), tmp_path / "same")
    sizes = [
        json.loads((tmp_path / name / "distil/result.json").read_text())["metrics"]["selected/size"]
        for name in ("other", "same")
    ]
    assert sizes[0] == 200  # right on nine digits of ten, it names every class often enough
    assert sizes[1] < 200  # an untrained teacher does not


def test_last_step_trains_the_head_alone_at_another_size(few: ImageData, tmp_path: Path) -> None:
    made = method(few, fixing=SETTINGS, fix_size=8)
    context, kept = run(made, tmp_path)
    assert context.stages == ["score", "distil", "finetune", "fix"]
    before = models.load(tmp_path / "finetune/model").state_dict()
    moved = {name for name, value in kept.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"body.{kept.head}.weight", f"body.{kept.head}.bias"}
    assert all(parameter.requires_grad for parameter in kept.parameters())
    assert models.load(tmp_path / "fix/model").size == (8, 8)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"fix_size": 0}, "fix_size 0"),
        ({"fix_size": 16}, "fix_size needs the settings fixing"),
        ({"duplicate_similarity": 1.5}, r"duplicate_similarity is 1\.5"),
        ({"teacher_mode": "batch_stats", "fit": dataclasses.replace(SETTINGS, accumulate=32)}, "at least 2 images"),
    ],
)
def test_wrong_input_is_refused_at_once(few: ImageData, change: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        SSLD(
            **{
                "data": few,
                "student": student(few),
                "teacher": Ready(student(few, seed=1)),
                "fit": SETTINGS,
                "finetuning": SETTINGS,
                **change,
            }
        )
