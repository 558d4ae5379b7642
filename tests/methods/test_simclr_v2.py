"""SimCLR v2: each stage by hand, and whole runs on digits."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.losses.contrastive import nt_xent
from limbeck.methods.classification.supervised import Supervised
from limbeck.methods.semi_supervised.contrastive import Contrastive
from limbeck.methods.semi_supervised.simclr_v2 import Distillation, SimCLRv2
from limbeck.models import load as load_model
from limbeck.models.classifier import Classifier
from limbeck.models.projector import Projector, project_contrastively
from limbeck.models.tapped import tap
from limbeck.stages.digest import digest
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Stage
from limbeck.teachers.frozen import Frozen
from tests.methods.programs import run_stages
from tests.methods.tables import Table, batch, fit, log_softmax, softmax, student, total, value
from tests.stages.fits import KilledError, dying

ADAM = {"name": "adam", "lr": 3e-3}
SETTINGS = FitSettings(updates=12, batch_size=32, accelerator="cpu", evaluations=1, optimizer=ADAM)


@pytest.fixture(scope="module")
def few() -> ImageData:
    """Five labels a class, everything else without."""
    data = load("digits", seed=0, labels_per_class=5, view="weak")
    assert isinstance(data, ImageData)
    return data


def method(data: ImageData, **changes: Any) -> SimCLRv2:
    given = {"view": "simclr_cifar@0.3-1", "student": student(data, seed=1, width=2), **changes}
    return SimCLRv2(data, student(data), SETTINGS, SETTINGS, SETTINGS, **given)


def metrics(folder: Path, stage: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / stage / "result.json").read_text(encoding="utf-8"))["metrics"]
    return found


def contrastive(data: ImageData, memory: int = 0) -> Contrastive:
    torch.manual_seed(0)
    return Contrastive(project_contrastively(student(data), data.task, outputs=8), 0.5, "simclr_cifar", memory, 0.9)


# Stage 1


def test_pretraining_sees_all_images_twice_and_no_label(few: ImageData) -> None:
    objective = contrastive(few)
    stream = objective.streams(few, 40, seed=0)
    assert few.unlabeled is not None
    assert len(stream.samples) == len(few.train) + len(few.unlabeled)
    some = stream.batch(0)
    assert set(some["label"].tolist()) == {-1}
    assert not torch.equal(some["first"], some["second"])

    twin = copy.deepcopy(objective)
    loss = total(objective.terms(some))
    outputs = twin.student(torch.cat([some["first"], some["second"]])).logits  # both views share batch statistics
    assert loss.item() == nt_xent(outputs[:40], outputs[40:], temperature=0.5).item()
    loss.backward()
    head = few.train.fetch(torch.tensor([0]))  # the classification head of the encoder takes no part
    assert head["label"].item() >= 0
    untrained = {name for name, p in objective.student.named_parameters() if p.grad is None}
    assert untrained == {
        *(f"encoder.body.{objective.student.encoder.head}.{part}" for part in ("weight", "bias")),
        "head.layers.2.1.bias",
    }


def test_memory_adds_negatives_of_the_average(few: ImageData) -> None:
    objective = contrastive(few, memory=50)
    assert objective.queue is not None
    assert objective.average is not None
    stream = objective.streams(few, 20, seed=0)
    said = []
    for number in range(4):
        some = stream.batch(number)
        twin = copy.deepcopy(objective)
        loss = total(objective.terms(some))
        outputs = twin.student(torch.cat([some["first"], some["second"]])).logits
        past = torch.cat(said)[-50:] if said else None
        # The queue holds them in another order: sums of 90 terms in float32.
        expected = nt_xent(outputs[:20], outputs[20:], negatives=past, temperature=0.5).item()
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        said.append(objective.average({"image": some["second"]}).logits)
        before = digest(objective.average.model)
        with torch.no_grad():
            next(iter(objective.student.encoder.parameters())).add_(0.1)
        objective.finish(some)
        assert digest(objective.average.model) != before
    assert bool((objective.queue.labels >= 0).all())
    assert total(contrastive(few).terms(some)).item() < loss.item()
    assert not any(parameter.requires_grad for parameter in objective.average.parameters())


def test_pretraining_goes_on_after_a_kill(few: ImageData, tmp_path: Path) -> None:
    options = {"updates": 8, "batch_size": 40, "checkpoint_seconds": 0.0, "optimizer": {"name": "lars", "lr": 1.0}}
    whole = fit(contrastive(few, memory=60), few, tmp_path / "whole", **options)
    with pytest.raises(KilledError):
        fit(dying(contrastive(few, memory=60), 5), few, tmp_path / "broken", **options)
    broken = fit(contrastive(few, memory=60), few, tmp_path / "broken", **options)
    assert [name for name in whole if not torch.equal(whole[name], broken[name])] == []


# Stage 3


@pytest.mark.parametrize(("alpha", "tau"), [(1.0, 1.0), (1.0, 0.1), (0.3, 2.0)])
def test_distillation_against_numpy(alpha: float, tau: float) -> None:
    s, t, labelled = np.random.default_rng(0).normal(size=(3, 4, 3)) * 2
    table = Table(np.concatenate([s, labelled]))
    teacher = Table(np.concatenate([t, t]))
    images, known = batch([-1] * 4, range(4), of=8), batch([0, 2, 1, 1], range(4, 8), of=8)
    batches = {"unlabeled": images} if alpha == 1 else {"unlabeled": images, "labeled": known}
    terms = Distillation(table, Frozen(teacher), alpha=alpha, temperature=tau).terms(batches)
    # The teacher's softmax is taken in float32.
    p, log_q = softmax(t / tau), log_softmax(s / tau)
    expected = -alpha * tau**2 * (p * log_q).sum(-1).mean()
    assert value(terms["distil"]).item() == pytest.approx(expected, rel=1e-6)
    total(terms).backward()
    gradient = alpha * tau**2 * (np.exp(log_q) - p) / tau / 4
    np.testing.assert_allclose(table.gradient()[:4], gradient, atol=1e-6)
    assert ("ce" in terms) == (alpha < 1)
    if alpha < 1:
        ce = -(1 - alpha) * log_softmax(labelled)[range(4), [0, 2, 1, 1]].mean()
        assert value(terms["ce"]).item() == pytest.approx(ce, rel=1e-9)


def test_at_the_teacher_its_entropy_is_left_and_nothing_pulls() -> None:
    t = np.random.default_rng(1).normal(size=(5, 4)) * 3
    table = Table(t)
    terms = Distillation(table, Frozen(Table(t)), temperature=2.0).terms({"unlabeled": batch([-1] * 5)})
    entropy = -(softmax(t / 2) * log_softmax(t / 2)).sum(-1).mean()
    assert total(terms).item() == pytest.approx(4 * entropy, rel=1e-6)
    total(terms).backward()
    np.testing.assert_allclose(table.gradient(), 0, atol=1e-6)


def test_a_low_temperature_is_hard_pseudo_labelling() -> None:
    s, t = np.random.default_rng(2).normal(size=(2, 5, 4))
    tau = 0.01
    table = Table(s)
    total(Distillation(table, Frozen(Table(t)), temperature=tau).terms({"unlabeled": batch([-1] * 5)})).backward()
    hard = np.eye(4)[t.argmax(-1)]
    np.testing.assert_allclose(table.gradient(), tau * (softmax(s / tau) - hard) / 5, atol=1e-6)


def test_alpha_0_is_supervised_training(few: ImageData) -> None:
    objective = Distillation(student(few), Frozen(student(few, seed=1)), alpha=0.0)
    streams = objective.streams(few, 20, seed=0)
    terms = objective.terms({name: stream.batch(0) for name, stream in streams.items()})
    plain = Supervised(student(few))
    stream = plain.streams(few, 20, seed=0)
    assert not isinstance(stream, dict)
    # The two batches went through the student one after the other, so neither sees the other's statistics.
    assert total(terms).item() == pytest.approx(value(plain.terms(stream.batch(0))["ce"]).item(), rel=1e-6)


def test_which_images_are_distilled_on(few: ImageData) -> None:
    assert few.unlabeled is not None
    every = len(few.train) + len(few.unlabeled)
    for alpha, where, expected in (
        (1.0, "all", {"unlabeled": every}),
        (0.5, "all", {"labeled": 50, "unlabeled": every}),
        (1.0, "labeled", {"unlabeled": 50}),
        (0.5, "labeled", {"labeled": 50, "unlabeled": 50}),
    ):
        objective = Distillation(student(few), Frozen(student(few, 1)), alpha=alpha, transfer_set=where)  # type: ignore[arg-type]
        streams = objective.streams(few, 20, seed=0)
        assert {name: len(stream.samples) for name, stream in streams.items()} == expected
        some = streams["unlabeled"].batch(0)
        assert set(some["label"].tolist()) == {-1}
        assert streams["unlabeled"].views == {"image": "weak"}


def test_teacher_sees_what_the_student_sees(few: ImageData) -> None:
    seen: list[torch.Tensor] = []
    objective = Distillation(student(few), Frozen(student(few, 1)))
    for model in (objective.student, objective.teacher.model):
        model.register_forward_pre_hook(lambda module, inputs, kept=seen: kept.append(inputs[0]["image"]))
    objective.terms({name: stream.batch(0) for name, stream in objective.streams(few, 20, seed=0).items()})
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])


# The program


def test_program(few: ImageData, tmp_path: Path) -> None:
    said: dict[str, str] = {}

    def look(stage: Stage) -> None:
        assert isinstance(stage, Fit)
        said[stage.name] = digest(stage.objective.student)
        if stage.name == "finetune":  # encoder and first layer of the head are those that were pre-trained
            learnt, begun = load_model(tmp_path / "pretrain" / "model"), stage.objective.student
            assert isinstance(learnt, Projector)
            assert isinstance(begun, Classifier)
            expected = tap(learnt, 1).state_dict()
            assert all(torch.equal(value, expected[name]) for name, value in begun.state_dict().items())

    stages = run_stages(method(few), tmp_path, look=look)
    assert list(stages) == ["pretrain", "finetune", "self-distil", "distil"]
    objectives = {name: stage.objective for name, stage in stages.items() if isinstance(stage, Fit)}
    projector = objectives["pretrain"].student
    assert isinstance(projector, Projector)
    tuned, anew, small = (objectives[name].student for name in ("finetune", "self-distil", "distil"))
    assert isinstance(tuned, Classifier)
    # The first layer of the head goes on; self-distillation is without it, from weights of its own.
    assert sum(p.numel() for p in tuned.parameters()) > sum(p.numel() for p in anew.parameters())
    assert sum(p.numel() for p in anew.parameters()) > sum(p.numel() for p in small.parameters())
    assert digest(anew) != said["self-distil"]
    last = objectives["distil"]
    assert isinstance(last, Distillation)
    assert last.finetuned is not None
    assert digest(last.teacher.model) == digest(anew)
    assert digest(last.finetuned.model) == digest(tuned)
    found = metrics(tmp_path, "distil")
    assert found["teacher/accuracy"] == metrics(tmp_path, "self-distil")["accuracy"]
    assert found["finetuned/accuracy"] == metrics(tmp_path, "finetune")["accuracy"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"self_distill": False}, ["pretrain", "finetune", "distil"]),
        ({"student": None}, ["pretrain", "finetune", "self-distil"]),
    ],
)
def test_shorter_programs(few: ImageData, tmp_path: Path, changes: dict[str, Any], expected: list[str]) -> None:
    stages = run_stages(method(few, **changes), tmp_path)
    assert list(stages) == expected
    last = stages[expected[-1]]
    assert isinstance(last, Fit)
    assert isinstance(last.objective, Distillation)
    assert last.objective.finetuned is None
    found = metrics(tmp_path, expected[-1])
    assert found["teacher/accuracy"] == metrics(tmp_path, "finetune")["accuracy"]


def test_selector_0_ignores_the_head(few: ImageData, tmp_path: Path) -> None:
    stages = run_stages(method(few, selector=0, student=None), tmp_path)
    tuned, anew = (stages[name] for name in ("finetune", "self-distil"))
    assert isinstance(tuned, Fit)
    assert isinstance(anew, Fit)
    shapes = [[p.shape for p in stage.objective.student.parameters()] for stage in (tuned, anew)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"pretraining_temperature": 0.0}, "temperature is 0.0"),
        ({"memory": -1}, "memory is -1"),
        ({"view": "none"}, "two different readings of an image are needed"),
        ({"view": "simclr:2"}, "two different readings of an image are needed"),
        ({"view": "simclrr"}, "Did you mean 'simclr'"),
        ({"selector": 4}, "selector is 4; the head has 3 layers"),
        ({"student": None, "self_distill": False}, "nothing to distil into"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_trained(
    few: ImageData, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LimbeckError, match=message):
        method(few, **changes)


def test_micro_batches_are_refused(few: ImageData) -> None:
    split = FitSettings(batch_size=32, accumulate=2)
    with pytest.raises(LimbeckError, match=r"pretraining\.accumulate is 2; it must be 1"):
        SimCLRv2(few, student(few), split, SETTINGS, SETTINGS)
