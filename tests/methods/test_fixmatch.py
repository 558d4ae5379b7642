import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.semi_supervised.fixmatch import FixMatch
from limbeck.models.classifier import ClassifierOutput
from limbeck.stages.engine import _parts
from tests.methods.tables import (
    Floats,
    Table,
    assert_equal,
    batch,
    fit,
    log_softmax,
    onehot,
    softmax,
    student,
    total,
    value,
)

# Rows of a table: 2 labelled images, the weak and the strong views of 3 unlabelled ones.
LABELED, WEAK, STRONG = [0, 1], [2, 3, 4], [5, 6, 7]
# Drawn by NumPy: hypothesis likes equal numbers, and between equal classes nothing can be told.
LOGITS = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).normal(scale=4, size=(8, 4)))
LABELS = st.lists(st.integers(0, 3), min_size=2, max_size=2)


def batches(labels: list[int], hidden: list[int] | None = None) -> dict[str, Any]:
    """The images of the table as the two streams give them."""
    labeled = batch(labels, LABELED, of=8)
    weak, strong = batch([-1] * 3, WEAK, of=8), batch([-1] * 3, STRONG, of=8)
    unlabeled = {**weak, "weak": weak["image"], "strong": strong["image"]}
    del unlabeled["image"]
    if hidden is not None:
        unlabeled["hidden_label"] = torch.tensor(hidden)
    return {"labeled": labeled, "unlabeled": unlabeled}


def reference(z: Floats, labels: list[int], tau: float, target: str, p: Floats) -> tuple[float, float, Floats]:
    """Both terms and the gradient, by the equations; p are the (aligned) predictions of the weak views."""
    certain = p.max(-1) >= tau
    q = onehot(list(p.argmax(-1)), 4) if target == "hard" else p
    ce = -(onehot(labels, 4) * log_softmax(z[LABELED])).sum(-1).mean()
    unlabeled = -(q * log_softmax(z[STRONG])).sum(-1) * certain
    gradient = np.zeros_like(z)
    gradient[LABELED] = (softmax(z[LABELED]) - onehot(labels, 4)) / 2
    gradient[STRONG] = (softmax(z[STRONG]) - q) * certain[:, None] / 3
    return ce, unlabeled.mean(), gradient


def aligned(p: Floats) -> Floats:
    scaled = p * (0.25 + 1e-6) / (p.mean(0) + 1e-6)
    found: Floats = scaled / scaled.sum(-1, keepdims=True)
    return found


@pytest.mark.parametrize("target", ["hard", "soft"])
@pytest.mark.parametrize("alignment", [0, 5])
@given(LOGITS, LABELS, st.floats(0.3, 0.99), st.floats(0, 10))
def test_equations_and_gradient(
    target: Any, alignment: int, z: Floats, labels: list[int], tau: float, lambda_u: float
) -> None:
    p = softmax(z[WEAK])
    p = aligned(p) if alignment else p
    # Predictions are float32: at the threshold, or between two equal classes, either side is right.
    top = np.sort(p, axis=-1)
    assume((np.abs(top[:, -1] - tau) > 1e-5).all() and (np.abs(top[:, -1] - top[:, -2]) > 1e-5).all())
    table = Table(z)
    objective = FixMatch(table, tau=tau, lambda_u=lambda_u, target=target, alignment=alignment)
    terms = objective.terms(batches(labels))
    total(terms).backward()
    ce, unlabeled, gradient = reference(z, labels, tau, target, p)
    gradient[STRONG] *= lambda_u
    # Targets are float32 (6e-8), times log-probabilities of up to 30 and a lambda_u of up to 10; aligned ones are
    # quotients of sums.
    assert value(terms["ce"]).item() == pytest.approx(ce, rel=1e-12)
    assert value(terms["certain"]).item() == pytest.approx(lambda_u * unlabeled, rel=1e-5, abs=1e-4)
    np.testing.assert_allclose(table.gradient(), gradient, atol=1e-5)
    assert (table.gradient()[WEAK] == 0).all()


def test_the_mean_is_over_all_unlabelled_samples() -> None:
    """One of three is certain, and right to the last bit: the others count as 0 in the mean."""
    z = np.zeros((8, 4))
    z[2, 1] = 50.0
    objective = FixMatch(Table(z))
    terms = objective.terms(batches([0, 1], hidden=[1, 2, 3]))
    assert value(terms["certain"]).item() == pytest.approx(np.log(4) / 3, rel=1e-6)
    seen = {name: value(parts[0]).item() for name, parts in objective.observed.items()}
    assert seen == {"coverage": pytest.approx(1 / 3), "used": pytest.approx(1 / 3), "precision": 1.0}


def test_labels_of_half_precision_logits_are_in_full() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    pseudo = FixMatch(Table(np.zeros((8, 4)))).pseudo_labels(ClassifierOutput(logits, None))
    assert isinstance(pseudo.target, torch.Tensor)
    assert torch.equal(pseudo.target, logits.float().softmax(-1))


def test_without_hidden_labels_there_is_no_precision() -> None:
    objective = FixMatch(Table(np.zeros((8, 4))))
    objective.terms(batches([0, 1]))
    assert set(objective.observed) == {"coverage", "used"}


def test_threshold_0_uses_all_and_above_all_none() -> None:
    z = np.random.default_rng(0).normal(size=(8, 4))
    every = FixMatch(Table(z), tau=0.0).terms(batches([0, 1]))
    _, expected, _ = reference(z, [0, 1], 0.0, "hard", softmax(z[WEAK]))
    assert value(every["certain"]).item() == pytest.approx(expected, rel=1e-6)
    assert value(FixMatch(Table(z), tau=1.0).terms(batches([0, 1]))["certain"]).item() == 0


def test_terms_change_no_state_and_the_update_does() -> None:
    z = np.random.default_rng(0).normal(size=(8, 4))
    table = Table(z)
    objective = FixMatch(table, tau=0.5, alignment=4, ema_decay=0.75)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    some = batches([0, 1])
    objective.terms(some)
    assert_equal(before, dict(objective.state_dict()))

    table.set_logits(z + 1)
    objective.finish(some)
    average = objective.trained()
    assert isinstance(average, Table)
    # float64 weights: 0.75 z + 0.25 (z + 1).
    torch.testing.assert_close(average.body[1].weight.T, torch.tensor(z + 0.25), rtol=1e-12, atol=1e-12)  # type: ignore[index, union-attr]
    assert objective.marginal is not None
    # float32 softmax
    np.testing.assert_allclose(objective.marginal.queue[0].numpy(), softmax(z[WEAK]).mean(0), atol=1e-6)
    coverage = (aligned(softmax(z[WEAK])).max(-1) >= 0.5).mean()
    assert objective.summary() == {"coverage": pytest.approx(coverage), "used": pytest.approx(coverage)}
    assert not any(p.requires_grad for p in objective.average.parameters())


def test_extreme_logits() -> None:
    z = 1e4 * np.random.default_rng(0).normal(size=(8, 4))
    table = Table(z)
    loss = total(FixMatch(table, target="soft", alignment=2).terms(batches([0, 1])))
    loss.backward()
    assert loss.isfinite()
    assert np.isfinite(table.gradient()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": 1.2}, "tau is 1.2; it must lie between 0 and 1"),
        ({"mu": 0}, "mu is 0; it must be at least 1"),
        ({"lambda_u": -1.0}, "lambda_u is -1.0"),
        ({"alignment": -1}, "alignment is -1; it is a number of batches"),
        ({"ema_decay": 2.0}, "decay of the average"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        FixMatch(Table(np.zeros((8, 4))), **arguments)


# On real data


@pytest.fixture(scope="module")
def few() -> ImageData:
    return load("digits", seed=0, labels_per_class=5, view="weak")


def test_batches_are_mu_to_one(few: ImageData) -> None:
    streams = FixMatch(student(few), mu=3).streams(few, 10, seed=0)
    assert streams["labeled"].batch_size == 10
    assert streams["unlabeled"].batch_size == 30
    assert streams["unlabeled"].views == {"weak": "weak", "strong": "strong"}


def test_the_average_is_what_is_kept(few: ImageData, tmp_path: Path) -> None:
    objective = FixMatch(student(few), mu=2, ema_decay=1.0)
    first = {name: tensor.clone() for name, tensor in objective.student.named_parameters()}
    fit(objective, few, tmp_path, updates=3, batch_size=10)
    kept, trained = dict(objective.trained().named_parameters()), dict(objective.student.named_parameters())
    assert all(torch.equal(kept[name], first[name]) for name in first)
    assert not any(torch.equal(trained[name], first[name]) for name in first)


def test_micro_batches_give_the_same_gradient(few: ImageData) -> None:
    """Without alignment and batch statistics a batch may be cut: the means count all unlabelled samples."""
    objective = FixMatch(student(few, norm="group"), mu=2)
    some = {name: stream.batch(0) for name, stream in objective.streams(few, 12, seed=0).items()}
    with torch.no_grad():
        confidences = objective.student(some["unlabeled"]["weak"]).logits.softmax(-1).amax(-1).sort().values
    objective.tau = (confidences[11] + confidences[12]).item() / 2
    gradients = []
    for parts in (1, 3):
        objective.zero_grad()
        for part in _parts(some, parts):  # type: ignore[arg-type]
            (total(objective.terms(part)) / parts).backward()
        gradients.append([p.grad.clone() for p in objective.student.parameters() if p.grad is not None])
        objective.finish(some)  # type: ignore[arg-type]
    assert objective.summary()["coverage"] == 0.5
    for one, other in zip(*gradients, strict=True):
        # Sums of float32 in another order.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_unlabelled_samples_are_needed(digits: ImageData) -> None:
    with pytest.raises(LimbeckError, match="needs unlabelled samples"):
        FixMatch(student(digits)).streams(dataclasses.replace(digits), 10, seed=0)
