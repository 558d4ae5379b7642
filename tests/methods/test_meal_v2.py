"""MEAL V2: its losses by hand, what moves and what does not, and whole runs on digits."""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.data.random import derive
from limbeck.data.samples import ImageData
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.methods.classification.kd import KD
from limbeck.methods.classification.meal_v2 import MEALV2, EnsembleDistillation
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
    onehot,
    small,
    softmax,
    student,
    total,
    value,
)

LOGITS = arrays(np.float64, (3, 4), elements=st.floats(-20, 20))


def distillation(s: Floats, *teachers: Floats, **options: Any) -> tuple[Table, EnsembleDistillation]:
    torch.manual_seed(0)
    table = Table(s)
    objective = EnsembleDistillation(table, [Frozen(Table(t), table.classes) for t in teachers], **{"K": 2, **options})
    if objective.discriminator is not None:
        objective.discriminator.double()
    return table, objective


@settings(deadline=None)
@given(LOGITS, LOGITS, LOGITS)
def test_similarity_and_its_gradient(s: Floats, t1: Floats, t2: Floats) -> None:
    """Cross-entropy with the mean softmax; dL/dz_s = (softmax(z_s) - p_T) / B."""
    table, objective = distillation(s, t1, t2, mode="off")
    terms = objective.terms(batch([0] * 3))
    total(terms).backward()
    p = (softmax(t1) + softmax(t2)) / 2
    assert list(terms) == ["similarity"]
    # The ensemble is computed in float32.
    np.testing.assert_allclose(total(terms).item(), -(p * log_softmax(s)).sum(-1).mean(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(table.gradient(), (softmax(s) - p) / 3, atol=1e-6)


def test_mean_of_softmaxes_is_not_the_softmax_of_the_mean() -> None:
    s, t1, t2 = np.zeros((1, 2)), np.log([[0.9, 0.1]]), np.log([[0.5, 0.5]])
    table, objective = distillation(s, t1, t2, mode="off")
    total(objective.terms(batch([0]))).backward()
    np.testing.assert_allclose(table.gradient(), [[0.5 - 0.7, 0.5 - 0.3]], atol=1e-6)
    probabilities, logits = objective.label(batch([0])["image"])
    np.testing.assert_allclose(logits.softmax(-1), [[0.75, 0.25]], atol=1e-6)
    np.testing.assert_allclose(probabilities, [[0.7, 0.3]], atol=1e-6)


@settings(deadline=None)
@given(LOGITS, LOGITS)
def test_one_teacher_is_soft_label_kd_at_temperature_1(s: Floats, t: Floats) -> None:
    """Up to the entropy of the teacher; a teacher that is sure is a hard label."""
    one, objective = distillation(s, t, mode="off")
    total(objective.terms(batch([0] * 3))).backward()
    other = Table(s)
    total(KD(other, Frozen(Table(t)), alpha=1.0, temperature=1.0).terms(batch([0] * 3))).backward()
    np.testing.assert_allclose(one.gradient(), other.gradient(), atol=1e-6)
    _, sure = distillation(s, 1e4 * onehot([2, 0, 1], 4), mode="off")
    expected = -log_softmax(s)[np.arange(3), [2, 0, 1]].mean()
    assert total(sure.terms(batch([0] * 3))).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("final_relu", [True, False])
def test_discriminator_loss_by_hand(final_relu: bool) -> None:
    """BCE over 2 B rows of two logits, raw logits in; z_T is the mean of the teachers' logits."""
    s, t1, t2 = np.random.default_rng(0).normal(size=(3, 5, 10)) * 3
    _, objective = distillation(s, t1, t2, final_relu=final_relu)
    found = value(objective.terms(batch([0] * 5))["discriminator"]).item()
    rows = np.concatenate([s, (t1 + t2) / 2])
    weights = [p.detach().numpy() for p in objective.discriminator.parameters()]  # type: ignore[union-attr]
    for layer in range(3):
        rows = rows @ weights[2 * layer].T + weights[2 * layer + 1]
        rows = np.maximum(rows, 0) if layer < 2 or final_relu else rows
    target = np.array([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5)
    expected = (np.logaddexp(0, rows) - target * rows).mean()
    assert found == pytest.approx(expected, abs=1e-6)
    if final_relu:
        assert found >= 0.5 * math.log(2) == pytest.approx(0.3465736, abs=1e-7)


def test_discriminator_of_zeros_says_nothing() -> None:
    s, t = np.random.default_rng(1).normal(size=(2, 4, 5))
    table, objective = distillation(s, t)
    assert objective.discriminator is not None
    for parameter in objective.discriminator.parameters():
        torch.nn.init.zeros_(parameter)
    term = value(objective.terms(batch([0] * 4))["discriminator"])
    term.backward()
    assert term.item() == pytest.approx(0.6931472, abs=1e-7)
    assert np.abs(table.gradient()).max() == 0


def test_reversal_turns_the_students_gradient_only() -> None:
    s, t = np.random.default_rng(2).normal(size=(2, 4, 10)) * 3
    gradients = {}
    for mode in ("cooperative", "adversarial"):
        table, objective = distillation(s, t, mode=mode, final_relu=False)
        value(objective.terms(batch([0] * 4))["discriminator"]).backward()
        own = [p.grad.clone() for p in objective.discriminator.parameters() if p.grad is not None]  # type: ignore[union-attr]
        gradients[mode] = table.gradient().copy(), own
    np.testing.assert_array_equal(gradients["cooperative"][0], -gradients["adversarial"][0])
    assert np.abs(gradients["cooperative"][0]).max() > 1e-4
    pairs = zip(gradients["cooperative"][1], gradients["adversarial"][1], strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert distillation(s, t, mode="off")[1].discriminator is None


def test_random_teacher() -> None:
    """One of the teachers a batch, both of its outputs; all come."""
    s, *teachers = np.random.default_rng(3).normal(size=(4, 2, 5))
    _, objective = distillation(s, *teachers, combine="random")
    chosen = set()
    torch.manual_seed(0)
    for _ in range(30):
        probabilities, logits = objective.label(batch([0, 0])["image"])
        which = [n for n, t in enumerate(teachers) if np.allclose(logits, t, atol=1e-6)]
        np.testing.assert_allclose(probabilities, softmax(teachers[which[0]]), atol=1e-6)
        chosen.add(which[0])
    assert chosen == {0, 1, 2}


class Ink(Table):
    """The sum of each image in both logits, with another sign in the second."""

    def __init__(self) -> None:
        super().__init__(np.array([[0.05, -0.05]] * 64))


def test_teachers_and_student_see_the_same_mixed_images(digits: ImageData) -> None:
    """Cross-entropy with oneself is one's entropy: only if both saw the same."""
    images = {"image": digits.train.fetch(torch.arange(20))["image"]}
    losses = {}
    for probability in (0.0, 1.0):
        objective = EnsembleDistillation(Ink(), [Frozen(Ink())], mode="off", cutmix_prob=probability)
        torch.manual_seed(5)
        seen: list[torch.Tensor] = []
        objective.student.body.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        losses[probability] = total(objective.terms(images)).item()
        p = softmax(objective.student(seen[0].float()).logits.detach().numpy())
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(-1).mean()
        assert losses[probability] == pytest.approx(entropy, abs=1e-5)
    assert losses[0.0] != losses[1.0]


def test_steps_of_student_and_discriminator(digits: ImageData, tmp_path: Path) -> None:
    """Against torch's own optimisers: both descend on the sum at the same time, each at its own rate."""
    data = small(digits)
    for number, (rate, expected) in enumerate(((1e-2, 1e-2), (None, 0.1), (0.0, 0.0))):
        torch.manual_seed(1)
        # Without the last ReLU, under which a discriminator may be born dead.
        objective = EnsembleDistillation(
            student(data, norm="none"), [Frozen(student(data, seed=1))], K=2, final_relu=False, discriminator_lr=rate
        )
        twin = copy.deepcopy(objective)
        sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
        fit(objective, data, tmp_path / str(number), updates=3, optimizer=sgd, schedule={"name": "constant"})
        assert twin.discriminator is not None
        groups = [{"params": twin.student.parameters()}, {"params": twin.discriminator.parameters(), "lr": expected}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        stream = twin.streams(data, 50, derive(0, "fit"))
        assert isinstance(stream, Stream)
        for update in range(3):
            optimizer.zero_grad()
            total(twin.terms(stream.batch(update))).backward()
            assert max(float(p.grad.abs().max()) for p in twin.discriminator.parameters() if p.grad is not None) > 1e-4
            optimizer.step()
        for name, parameter in twin.named_parameters():
            # Fused and plain steps in float32.
            torch.testing.assert_close(objective.get_parameter(name), parameter, atol=1e-6, rtol=1e-5)


def test_micro_batches_give_the_same_weights(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    runs = []
    for parts in (1, 5):
        torch.manual_seed(0)
        objective = EnsembleDistillation(student(data, norm="group"), [Frozen(student(data, seed=1))], K=2)
        fit(objective, data, tmp_path / str(parts), accumulate=parts, updates=3)
        runs.append({name: weight.clone() for name, weight in objective.state_dict().items()})
    assert any(name.startswith("discriminator") for name in runs[0])
    for name, weight in runs[0].items():
        # Sums of float32 in another order, over three updates.
        torch.testing.assert_close(weight, runs[1][name], rtol=1e-4, atol=1e-6)


def test_no_label_is_read_and_teachers_stay(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    other = dataclasses.replace(data, train=data.train.relabel((data.train.labels + 3) % 10))
    found = []
    for name, samples in (("a", data), ("b", other)):
        torch.manual_seed(0)
        objective = EnsembleDistillation(
            student(data), [Frozen(student(data, seed=seed, dropout=0.5)) for seed in (1, 2)], cutmix_prob=0.5
        )
        before = {key: digest(teacher) for key, teacher in objective.teachers().items()}
        assert list(before) == ["teacher", "teacher-0", "teacher-1"]
        found.append(fit(objective, samples, tmp_path / name))
        assert {key: digest(teacher) for key, teacher in objective.teachers().items()} == before
    assert_equal(*found)


# programs

SETTINGS = FitSettings(updates=8, batch_size=32, accelerator="cpu", evaluations=1)
COMMITTEE = [{"name": "cnn", "width": 2}, {"name": "cnn", "width": 3, "norm": "group"}]


def method(data: ImageData, **changes: Any) -> MEALV2:
    options: dict[str, Any] = {"committee": COMMITTEE, "start": Ready(student(data)), "K": 2}
    return MEALV2(data=data, squeeze=SETTINGS, fit=SETTINGS, **{**options, **changes})


def run(made: MEALV2, folder: Path) -> Context:
    context = Context(folder, "meal-v2", seed=0, reporter=Reporter(quiet=True))
    drive(made.program(), context)
    return context


def test_whole_run_measures_every_teacher(digits: ImageData, tmp_path: Path) -> None:
    context = run(method(digits), tmp_path / "first")
    assert context.stages == ["squeeze-0", "squeeze-1", "fit"]
    metrics = json.loads((tmp_path / "first/fit/result.json").read_text())["metrics"]
    for number in range(2):
        own = json.loads((tmp_path / f"first/squeeze-{number}/result.json").read_text())["metrics"]
        assert metrics[f"teacher-{number}/accuracy"] == own["accuracy"]
    assert metrics["teacher/accuracy"] > 0
    # Saved networks are not trained again, and teach the same.
    saved = [{"name": "folder", "path": str(tmp_path / f"first/squeeze-{n}/model")} for n in range(2)]
    context = run(method(digits, committee=saved), tmp_path / "second")
    assert context.stages == ["fit"]
    again = json.loads((tmp_path / "second/fit/result.json").read_text())["metrics"]
    assert again["teacher/accuracy"] == metrics["teacher/accuracy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"committee": []}, "committee names no network"),
        ({"committee": [{"width": 3}]}, r"committee\[0\] is .* a model block with a name"),
        ({"K": 0}, "K is 0"),
        ({"discriminator_lr": -1.0}, r"discriminator_lr is -1\.0"),
        ({"cutmix_prob": 1.5}, r"cutmix_prob is 1\.5"),
        ({"cutmix_beta": 0.0}, r"cutmix_beta 0\.0"),
    ],
)
def test_wrong_input_is_refused_at_once(digits: ImageData, change: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        method(digits, **change)


def test_a_teacher_that_lacks_a_class(digits: ImageData, tmp_path: Path) -> None:
    from limbeck.models import build, save

    few = dataclasses.replace(digits.task, classes=digits.classes[:9])
    save(build("cnn", few, width=2), tmp_path / "few")
    made = method(digits, committee=[{"name": "folder", "path": str(tmp_path / "few")}])
    with pytest.raises(LimbeckError, match=r"committee\[0\] does not know the classes \['9'\]"):
        run(made, tmp_path / "run")
    made = method(digits, start=Ready(build("cnn", few, width=2)), committee=COMMITTEE[:1])
    with pytest.raises(LimbeckError, match="starts from a classifier of the classes"):
        run(made, tmp_path / "run")
