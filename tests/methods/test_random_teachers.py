import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.classification.linear_probe import LinearProbe
from limbeck.methods.classification.random_teachers import MatchTeacher, RandomTeachers
from limbeck.metrics.probes import standardisation
from limbeck.models import Classifier, build
from limbeck.models import load as load_model
from limbeck.models.projector import Projector, project
from limbeck.stages.evaluation import predict_logits, quality
from limbeck.stages.evaluation.representation import embed
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, drive
from limbeck.teachers.random import RandomTeacher
from tests.methods.tables import log_softmax, softmax, total

SMALL: dict[str, Any] = {"hidden": 16, "bottleneck": 8, "outputs": 32}
FIT = FitSettings(
    updates=10,
    batch_size=50,
    evaluations=1,
    accelerator="cpu",
    optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.0},
)
PROBE = dataclasses.replace(FIT, updates=60, optimizer={"name": "adamw", "lr": 1e-2})


@pytest.fixture(scope="module")
def data() -> ImageData:
    found = load("digits", seed=0, labels_per_class=30, view="none")
    assert isinstance(found, ImageData)
    return found


def encoder(data: ImageData, norm: str = "none") -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = build("vgg", data.task, blocks=[[8], [16]], norm=norm)
    assert isinstance(found, Classifier)
    return found


def method(data: ImageData, norm: str = "none", fit: FitSettings = FIT, **options: Any) -> RandomTeachers:
    return RandomTeachers(data, encoder(data, norm), fit, PROBE, **{**SMALL, **options})


def pair(data: ImageData, norm: str = "none", **options: Any) -> MatchTeacher:
    """A student that is its teacher."""
    model = project(encoder(data, norm), data.task, **SMALL)
    teacher = RandomTeacher(model, 1)
    student = copy.deepcopy(model)
    student.load_state_dict(teacher.model.state_dict())
    given = {"loss": "ce", "tau_S": 1.0, "tau_T": 1.0, **options}
    return MatchTeacher(student, teacher, **given)


def images(data: ImageData, count: int = 20) -> dict[str, torch.Tensor]:
    return {"image": data.train.fetch(torch.arange(count))["image"]}


def run(made: RandomTeachers, folder: Path, seed: int = 0) -> tuple[Classifier, Context, dict[str, float]]:
    context = Context(folder, "random-teachers", seed=seed)
    model = drive(made.program(), context)
    return model, context, json.loads((folder / "probe" / "result.json").read_text(encoding="utf-8"))["metrics"]


# The loss


def test_at_the_teacher_nothing_pulls(data: ImageData) -> None:
    # In float32 rounding pulls a little, the more so as the small bottleneck is brought to length 1.
    objective = pair(data).double()
    terms = objective.terms(images(data))
    assert set(terms) == {"ce"}
    total(terms).backward()
    logits = objective.teacher(images(data)["image"]).logits.double().numpy()
    entropy = -(softmax(logits) * log_softmax(logits)).sum(-1).mean()
    assert total(terms).item() == pytest.approx(entropy, abs=1e-12)
    assert entropy <= math.log(32)
    (kl,) = objective.observed["kl"]
    assert float(kl) == pytest.approx(0, abs=1e-12)  # type: ignore[arg-type]
    for parameter in objective.student.parameters():
        assert parameter.grad is None or float(parameter.grad.abs().max()) < 1e-12


@pytest.mark.parametrize(("tau_S", "tau_T"), [(1.0, 1.0), (0.1, 0.04)])
def test_losses_and_gradients_against_numpy(data: ImageData, tau_S: float, tau_T: float) -> None:
    objective = pair(data, tau_S=tau_S, tau_T=tau_T)
    with torch.no_grad():
        for parameter in objective.student.head.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    batch = images(data)
    student, teacher = (model(batch["image"]).logits.detach() for model in (objective.student, objective.teacher))
    q, p = student.double().numpy() / tau_S, teacher.double().numpy() / tau_T
    ce = -(softmax(p) * log_softmax(q)).sum(-1).mean()
    entropy = -(softmax(p) * log_softmax(p)).sum(-1).mean()
    mse = ((student - teacher).double().numpy() ** 2).mean()
    for loss, expected in (("ce", ce), ("kl", ce - entropy), ("mse", mse)):
        objective.loss = loss
        logits: list[torch.Tensor] = []
        hook = objective.student.head.register_forward_hook(
            lambda module, inputs, output, kept=logits: (output.retain_grad(), kept.append(output))[0]
        )
        loss_value = total(objective.terms(batch))
        loss_value.backward()
        hook.remove()
        # A KL is the difference of two float32 sums over 32 outputs.
        assert loss_value.item() == pytest.approx(expected, abs=1e-6, rel=1e-5)
        assert logits[0].grad is not None
        wanted = (
            (softmax(q) - softmax(p)) / tau_S / 20 if loss != "mse" else 2 * (student - teacher).numpy() / (20 * 32)
        )
        np.testing.assert_allclose(logits[0].grad.numpy(), wanted, atol=1e-6 / tau_S)


def test_with_batch_normalisation_the_start_is_not_the_teacher(data: ImageData) -> None:
    objective = pair(data, norm="batch").train()
    objective.terms(images(data))
    (kl,) = objective.observed["kl"]
    assert float(kl) > 1e-6  # type: ignore[arg-type]
    objective.student.eval()
    objective.observed.clear()
    with torch.no_grad():
        fresh = pair(data, norm="batch").eval()
        fresh.terms(images(data))
    (kl,) = fresh.observed["kl"]
    assert float(kl) == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]


def test_half_precision_is_not_used(data: ImageData) -> None:
    objective = pair(data, norm="batch").train()
    full = total(copy.deepcopy(objective).terms(images(data)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert total(objective.terms(images(data))).item() == full.item()


def test_noise_has_the_mean_and_spread_of_the_images(data: ImageData) -> None:
    objective = pair(data, images="noise")
    torch.manual_seed(0)
    noise = objective._noise(torch.rand(500, 1, 8, 8))
    encoder = objective.student.encoder
    # 32,000 draws: three standard errors are 1.7 % of the spread.
    assert float(noise.mean()) == pytest.approx(encoder.mean[0], abs=0.017 * encoder.std[0])
    assert float(noise.std()) == pytest.approx(encoder.std[0], rel=0.02)
    torch.manual_seed(0)
    one = total(objective.terms(images(data))).item()
    torch.manual_seed(0)
    assert total(objective.terms({"image": torch.zeros(20, 1, 8, 8)})).item() == one


def test_all_images_without_labels_or_augmentation(data: ImageData) -> None:
    stream = pair(data).streams(data, 50, seed=0)
    assert data.unlabeled is not None
    assert len(stream.samples) == len(data.train) + len(data.unlabeled)
    batch = stream.batch(0)
    assert set(batch["label"].tolist()) == {-1}
    assert torch.equal(batch["image"], stream.samples.images.take(batch["index"]))  # type: ignore[attr-defined]


# The probe


def test_probe_becomes_the_head_and_nothing_else_moves(data: ImageData, tmp_path: Path) -> None:
    student = encoder(data, "batch")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    objective = LinearProbe(student, data.train)
    Fit("probe", objective, data, PROBE).run(tmp_path, Context(tmp_path, "test", seed=0))
    head = f"body.{student.head}"
    moved = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"{head}.weight", f"{head}.bias"}
    features = embed(student, data.test)
    mean, std = standardisation(embed(student, data.train))
    with torch.no_grad():
        expected = objective.probe((features - mean) / std)
    # The same linear function with the division inside of the weights.
    torch.testing.assert_close(predict_logits(student, data.test).logits, expected, rtol=1e-4, atol=1e-4)
    assert quality(predict_logits(student, data.test))["accuracy"] > 0.5


def test_probe_is_logistic_regression_on_standardised_features(data: ImageData) -> None:
    student = encoder(data)
    objective = LinearProbe(student, data.train)
    batch = data.train.fetch(torch.arange(40))
    features = embed(student, data.train).numpy()
    standard = (features - features.mean(0)) / np.where(
        features.std(0) > 1e-6 * abs(features.mean(0)), features.std(0), 1
    )
    weight, bias = (p.detach().numpy() for p in objective.probe.parameters())
    logits = standard[:40] @ weight.T + bias
    expected = -log_softmax(logits)[np.arange(40), batch["label"]].mean()
    assert total(objective.terms(batch)).item() == pytest.approx(expected, rel=1e-5)
    batch["label"][1:] = -1
    assert total(objective.terms(batch)).item() == pytest.approx(-log_softmax(logits)[0, batch["label"][0]], rel=1e-5)


def test_probe_needs_a_linear_head(data: ImageData) -> None:
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, bias=False))
    with pytest.raises(LimbeckError, match="linear classification head with bias"):
        LinearProbe(Classifier(body, data.classes, channels=1), data.train)


# The program


def test_teacher_stays_and_the_result_holds_all_three(data: ImageData, tmp_path: Path) -> None:
    made = method(data, "batch", alpha=0.3)
    model, context, metrics = run(made, tmp_path)
    assert context.stages == ["distil", "probe-teacher", "probe-start", "probe"]
    assert metrics["gain"] == pytest.approx(metrics["accuracy"] - metrics["start/accuracy"], abs=1e-12)
    distil = json.loads((tmp_path / "distil" / "result.json").read_text(encoding="utf-8"))["metrics"]
    for name in ("knn_accuracy", "teacher/knn_accuracy"):
        assert metrics[name] == distil[name]
    for name, folder in (("", "probe"), ("teacher/", "probe-teacher"), ("start/", "probe-start")):
        own = load_model(tmp_path / folder / "model")
        assert metrics[f"{name}accuracy"] == quality(predict_logits(own, data.test))["accuracy"]
    trained = load_model(tmp_path / "distil" / "model")
    assert isinstance(trained, Projector)
    assert torch.equal(embed(trained, data.test), embed(model, data.test))
    random = load_model(tmp_path / "probe-teacher" / "model")
    assert isinstance(random, Classifier)
    norm = next(m for m in random.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert norm.running_mean is not None
    assert not norm.running_mean.any()
    assert norm.weight.tolist() == [1.0] * 8


def test_student_that_starts_at_the_teacher_is_probed_once(data: ImageData, tmp_path: Path) -> None:
    _, context, metrics = run(method(data), tmp_path)
    assert context.stages == ["distil", "probe-teacher", "probe"]
    assert metrics["start/accuracy"] == metrics["teacher/accuracy"]


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, True),
        ({"alpha": 1.0}, False),
        ({"s_init": "neighborhood"}, True),
        ({"s_init": "neighborhood", "alpha": 2.0}, False),
    ],
)
def test_first_weights(data: ImageData, options: dict[str, Any], same: bool) -> None:
    made = method(data, **options)
    teacher = RandomTeacher(made.projector, 1).model
    student = made.start(teacher, 2)
    pairs = list(zip(student.parameters(), teacher.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs) == same
    if options.get("alpha") == 1.0:
        other = RandomTeacher(made.projector, 2).model
        assert all(torch.equal(a, b) for a, b in zip(student.parameters(), other.parameters(), strict=True))


def test_labels_are_not_read_in_distillation(data: ImageData, tmp_path: Path) -> None:
    turned = dataclasses.replace(data, train=data.train.relabel((data.train.labels + 1) % 10))
    for name, of in (("true", data), ("turned", turned)):
        program = method(of, "batch").program()
        torch.manual_seed(0)
        stage = next(program)
        before = copy.deepcopy(stage.objective.teacher)
        stage.run(tmp_path / name, Context(tmp_path, "test", seed=0))
        kept = zip(before.model.state_dict().values(), stage.objective.teacher.model.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in kept)
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("true", "turned"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.2}, "alpha is 1.2; with s_init interpolated it must lie between 0 and 1"),
        ({"alpha": -1.0, "s_init": "neighborhood"}, "at 0 or above"),
        ({"tau_T": 0.0}, "tau_T is 0.0"),
        ({"outputs": 0}, "and 0 outputs is empty"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_trained(
    data: ImageData, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(LimbeckError, match=message):
        method(data, **change)
