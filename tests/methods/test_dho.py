from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional as F

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.semi_supervised.dho import DHO
from limbeck.models.classifier import Classifier
from limbeck.models.dual_head import DualHead
from limbeck.teachers.frozen import Frozen
from tests.methods.tables import Floats, Table, batch, fit, kl, log_softmax, softmax, student, total, value

LOGITS = arrays(np.float64, (5, 3), elements=st.floats(-20, 20))
LABELS = [2, 0]
"""Of the first two images; the other three have none."""


def batches(labels: list[int] | None = None, hidden: list[int] | None = None) -> dict[str, Any]:
    labels = LABELS if labels is None else labels
    rest = list(range(len(labels), 5))
    unlabeled = batch([-1] * len(rest), rest, of=5)
    if hidden is not None:
        unlabeled["hidden_label"] = torch.tensor(hidden)
    return {"labeled": batch(labels, of=5), "unlabeled": unlabeled}


def objective_of(teacher: Floats, **arguments: Any) -> DHO:
    """Features of five images are drawn, as weights of the first layer; heads are linear in them; all in float64."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5, 4, bias=False), torch.nn.Linear(4, 3))
    objective = DHO(Classifier(body, ["0", "1", "2"], channels=1), Frozen(Table(teacher)), **arguments)
    return objective.double()


def features_of(objective: DHO) -> torch.nn.Parameter:
    """The features, [4, 5]."""
    weight = objective.student.body.get_submodule("1").weight
    assert isinstance(weight, torch.nn.Parameter)
    return weight


@settings(max_examples=8, deadline=None)
@given(LOGITS, st.floats(0, 2), st.floats(0.1, 2), st.floats(0.5, 8))
def test_equations(t: Floats, lambda_ce: float, lambda_kd: float, T: float) -> None:
    objective = objective_of(t, lambda_ce=lambda_ce, lambda_kd=lambda_kd, T=T)
    terms = objective.terms(batches())
    features = features_of(objective).detach().T
    ce, kd = (z.detach().numpy() for z in objective.head.heads(features))
    expected = {
        "ce": -lambda_ce * log_softmax(ce)[[0, 1], LABELS].mean(),
        "kd/labeled": lambda_kd * T**2 * kl(t[:2], kd[:2], T).mean(),
        "kd/unlabeled": lambda_kd * T**2 * kl(t[2:], kd[2:], T).mean(),
    }
    assert terms.keys() == expected.keys()
    for name, number in expected.items():
        assert value(terms[name]).item() == pytest.approx(number, rel=1e-9, abs=1e-12), name


def test_each_head_has_one_teacher() -> None:
    """dL/dW_ce depends on the labels only, dL/dW_kd on the teacher only, exactly; features on both."""
    teacher = np.random.default_rng(0).normal(size=(5, 3))

    def gradients(teacher: Floats, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        objective = objective_of(teacher)
        total(objective.terms(batches(labels))).backward()
        found = (objective.head.ce.weight, objective.head.kd.weight, features_of(objective))
        assert all(p.grad is not None for p in found)
        return tuple(p.grad for p in found)

    ce, kd, features = gradients(teacher, [2, 0])
    other_ce, other_kd, other_features = gradients(-teacher, [2, 0])
    assert torch.equal(ce, other_ce)
    assert not torch.equal(kd, other_kd)
    assert not torch.equal(features, other_features)
    other_ce, other_kd, other_features = gradients(teacher, [1, 1])
    assert not torch.equal(ce, other_ce)
    assert torch.equal(kd, other_kd)
    assert not torch.equal(features, other_features)


def test_nothing_to_distil_where_logits_differ_by_a_constant() -> None:
    objective = objective_of(np.zeros((5, 3)), T=3.0)
    features = features_of(objective).detach().T
    said = objective.head.heads(features)[1].detach().numpy() + np.arange(5)[:, None]
    objective.teacher.model.set_logits(said)
    terms = objective.terms(batches())
    assert value(terms["kd/labeled"]).item() == pytest.approx(0, abs=1e-12)
    assert value(terms["kd/unlabeled"]).item() == pytest.approx(0, abs=1e-12)


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    """For small differences of logits: T^2 makes up for both softmaxes."""
    sizes = []
    for T in (2.0, 8.0):
        objective = objective_of(1e-3 * np.random.default_rng(0).normal(size=(5, 3)), lambda_ce=0.0, T=T)
        with torch.no_grad():
            objective.head.kd.weight.mul_(1e-3)
            objective.head.kd.bias.zero_()
        total(objective.terms(batches())).backward()
        sizes.append(objective.head.kd.weight.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=2e-3)  # second order in logits of 1e-3


def test_single_head_is_both_heads_tied() -> None:
    teacher = np.random.default_rng(0).normal(size=(5, 3))
    single, dual = objective_of(teacher, heads="single"), objective_of(teacher)
    weight = single.student.body.get_submodule("2").weight
    with torch.no_grad():
        for head in (dual.head.ce, dual.head.kd):
            head.weight.copy_(weight)
            head.bias.copy_(single.student.body.get_submodule("2").bias)
    one, two = (total(objective.terms(batches())) for objective in (single, dual))
    assert one.item() == pytest.approx(two.item(), rel=1e-12)
    one.backward()
    two.backward()
    tied = dual.head.ce.weight.grad + dual.head.kd.weight.grad
    torch.testing.assert_close(weight.grad, tied)
    with torch.no_grad():
        answer = single.student({"image": batches()["labeled"]["image"]}).logits
    assert not torch.allclose(answer.exp().sum(-1), torch.ones(2, dtype=torch.float64))  # logits, no interpolation


def test_cosine_of_gradients_and_precision_are_observed() -> None:
    teacher = np.random.default_rng(0).normal(size=(5, 3))
    objective = objective_of(teacher)
    hidden = teacher[2:].argmax(-1)
    hidden[0] = (hidden[0] + 1) % 3
    objective.terms(batches(hidden=hidden.tolist()))
    features = features_of(objective).detach().T[:2]
    ce, kd = (z.detach().numpy() for z in objective.head.heads(features))
    weights = [head.weight.detach().numpy() for head in (objective.head.ce, objective.head.kd)]
    # d CE / dv = W^T (q - y), d KL / dv = W^T (softmax(kd / T) - softmax(t / T)) / T.
    pulls = [
        (softmax(ce) - np.eye(3)[LABELS]) @ weights[0],
        (softmax(kd / 2) - softmax(teacher[:2] / 2)) @ weights[1],
    ]
    cosines = (pulls[0] * pulls[1]).sum(-1) / np.prod([np.linalg.norm(pull, axis=-1) for pull in pulls], axis=0)
    seen = {name: value(parts[0]).item() for name, parts in objective.observed.items()}
    assert seen["gradient_cosine"] == pytest.approx(cosines.mean(), rel=1e-5)  # cosines are float32
    assert seen["precision"] == pytest.approx(2 / 3)


def test_labels_that_are_missing_count_for_nothing() -> None:
    teacher = np.random.default_rng(0).normal(size=(5, 3))
    objective = objective_of(teacher)
    one = value(objective.terms(batches([2, -1]))["ce"]).item()
    two = value(objective.terms({**batches(), "labeled": batch([2], [0], of=5)})["ce"]).item()
    assert one == pytest.approx(two, rel=1e-12)
    assert value(objective.terms(batches([-1, -1]))["ce"]).item() == 0


@pytest.fixture(scope="module")
def few() -> ImageData:
    data = load("digits", seed=0, labels_per_class=4)
    assert isinstance(data, ImageData)
    return data


def test_streams_are_of_equal_size_and_disjoint(few: ImageData) -> None:
    objective = DHO(student(few), Frozen(student(few, seed=1)))
    streams = objective.streams(few, 20, seed=0)
    made = {name: stream.batch(0) for name, stream in streams.items()}
    assert [len(part["image"]) for part in made.values()] == [20, 20]
    assert (made["labeled"]["label"] >= 0).all()
    assert (made["unlabeled"]["label"] == -1).all()
    indices = [set(stream.samples.indices.tolist()) for stream in streams.values()]
    assert not indices[0] & indices[1]


def test_pair_is_chosen_for_the_weights_that_are_measured(few: ImageData) -> None:
    objective = DHO(student(few), Frozen(student(few, seed=1)))
    objective.streams(few, 20, seed=0)
    chosen = []
    for changed in (False, True, False):
        objective.head.set_interpolation(0.123, 3.0)
        if changed:
            objective.finish({})
        objective.trained()
        chosen.append(float(objective.head.beta) != 3.0)
    assert chosen == [False, True, False]  # once after an update
    objective.calibrate(few.validation)
    said = objective.both(few.validation)
    best = max(float((z.argmax(-1) == few.validation.labels).float().mean()) for z in said.values())
    objective.eval()
    with torch.no_grad():
        mixed = objective.student(few.validation.fetch(torch.arange(len(few.validation)))).logits
    assert float((mixed.argmax(-1) == few.validation.labels).float().mean()) >= best


@pytest.mark.parametrize("select", ["best", "last"])
def test_kept_pair_is_that_of_the_kept_weights(few: ImageData, tmp_path: Path, select: str) -> None:
    """Wherever the evaluations lie in the epochs (of 70 updates here)."""
    objective = DHO(student(few), Frozen(student(few, seed=1)))
    weights = fit(objective, few, tmp_path, updates=15, batch_size=20, evaluations=3, select=select)
    kept = weights["body.6.alpha"], weights["body.6.beta"]
    objective.head.set_interpolation(0.123, 3.0)
    objective.calibrate(few.validation)
    assert (objective.head.alpha, objective.head.beta) == kept


def test_given_values_are_kept(few: ImageData, tmp_path: Path) -> None:
    objective = DHO(student(few), Frozen(student(few, seed=1)), alpha=0.5, beta=0.5)
    weights = fit(objective, few, tmp_path, updates=3, batch_size=20)
    assert (float(objective.head.alpha), float(objective.head.beta)) == (0.5, 0.5)
    assert {name for name in weights if name.endswith(("alpha", "beta"))} == {"body.6.alpha", "body.6.beta"}
    half = DHO(student(few), Frozen(student(few, seed=1)), alpha=0.25)
    half.streams(few, 20, seed=0)
    half.calibrate(few.validation)
    assert float(half.head.alpha) == 0.25


def test_summary_tells_the_heads_apart(few: ImageData, tmp_path: Path) -> None:
    objective = DHO(student(few), Frozen(student(few, seed=1)))
    fit(objective, few, tmp_path, updates=30, batch_size=20)
    found = objective.summary()
    logits = objective.both(few.test)
    assert found["ce_head/accuracy"] == pytest.approx(
        float((logits["ce"].argmax(-1) == few.test.labels).float().mean())
    )
    assert found["kd_head/accuracy"] == pytest.approx(
        float((logits["kd"].argmax(-1) == few.test.labels).float().mean())
    )
    assert found["ce_head/accuracy"] != found["kd_head/accuracy"]
    assert found["alpha"] == float(objective.head.alpha)
    # With the weight on one head the student is that head.
    objective.head.set_interpolation(1.0, 1.0)
    images = few.test.fetch(torch.arange(10))
    objective.eval()
    with torch.no_grad():
        torch.testing.assert_close(objective.student(images).logits, F.log_softmax(logits["ce"][:10], -1))
    assert DHO(student(few), Frozen(student(few, seed=1)), heads="single").summary() == {}


def test_student_has_both_heads(few: ImageData) -> None:
    objective = DHO(student(few), Frozen(student(few, seed=1)))
    assert isinstance(objective.head, DualHead)
    assert objective.student.factory == "dual_head"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"T": 0.0}, "temperatures must be above 0"),
        ({"beta": 0.0}, "temperatures must be above 0"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"lambda_ce": -1.0}, "at least 0"),
        ({"lambda_ce": 0.0, "lambda_kd": 0.0}, "not both 0"),
    ],
)
def test_refuses(few: ImageData, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        DHO(student(few), Frozen(student(few, seed=1)), **arguments)


def test_needs_unlabelled_images(digits: ImageData) -> None:
    objective = DHO(student(digits), Frozen(student(digits, seed=1)))
    with pytest.raises(LimbeckError, match="needs unlabelled samples"):
        objective.streams(digits, 20, seed=0)
