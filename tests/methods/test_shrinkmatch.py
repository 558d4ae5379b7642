from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.semi_supervised.fixmatch import FixMatch
from limbeck.methods.semi_supervised.shrinkmatch import ShrinkMatch
from limbeck.models import Classifier
from tests.methods.tables import Floats, Table, assert_equal, fit, log_softmax, softmax, student, value
from tests.methods.test_fixmatch import LABELS, LOGITS, STRONG, WEAK, aligned, batches

EXAMPLE = np.array([0.5, 0.45, 0.03, 0.02])


def objective_of(z: Floats, auxiliary: Floats, **arguments: Any) -> ShrinkMatch:
    """Its students's and its auxiliary logits are known: row i of z and of ``auxiliary`` for image i."""
    objective = ShrinkMatch(Table(z), **arguments)
    head = nn.Linear(len(z), z.shape[1], bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(auxiliary).T)
    objective.auxiliary = nn.Sequential(head)
    return objective


def auxiliary_gradient(objective: ShrinkMatch) -> Floats:
    gradient = objective.auxiliary[0].weight.grad
    assert isinstance(gradient, torch.Tensor)
    found: Floats = gradient.T.numpy()
    return found


def shrunk_loss(p: Floats, auxiliary: Floats, tau: float) -> tuple[float, Floats]:
    """L_s and its gradient, one sample and one class after the other."""
    loss, gradient = 0.0, np.zeros_like(auxiliary)
    for b in range(len(p)):
        order = np.argsort(-p[b], kind="stable")
        s = p[b][order]
        if s[0] >= tau:
            continue
        for c in range(2, len(s)):
            if s[0] / (s[0] + s[c:].sum()) >= tau:
                kept = [order[0], *order[c:]]
                loss -= s[0] * log_softmax(auxiliary[b, kept])[0]
                gradient[b, kept] = s[0] * softmax(auxiliary[b, kept])
                gradient[b, order[0]] -= s[0]
                break
    return loss / len(p), gradient / len(p)


def close_to_a_threshold(p: Floats, tau: float) -> bool:
    """Predictions are float32: there, and between equal classes, either side is right."""
    s = -np.sort(-p, axis=-1)
    confidences = np.stack([s[:, 0] / (s[:, 0] + s[:, c:].sum(-1)) for c in range(1, p.shape[1])], axis=-1)
    return bool((np.abs(confidences - tau) < 1e-5).any() or (np.abs(np.diff(s, axis=-1)) < 1e-6).any())


@given(LOGITS, LOGITS, LABELS, st.floats(0.5, 0.99), st.floats(0, 1))
def test_equations_and_gradient(z: Floats, head: Floats, labels: list[int], tau: float, before: float) -> None:
    p = softmax(z[WEAK])
    assume(not close_to_a_threshold(p, tau))
    objective = objective_of(z, head, tau=tau, alignment=0, lambda_u=2.0, ratio_decay=0.75)
    objective.certain_ratio.update(torch.tensor([before]))
    terms = objective.terms(batches(labels))
    value(terms["shrunk"]).backward()

    ratio = 0.75 * before + 0.25 * (p.max(-1) >= tau).mean()
    loss, gradient = shrunk_loss(p, head[STRONG], tau)
    # Weights and ratio are float32, 6e-8 of losses of up to 30.
    assert value(terms["shrunk"]).item() == pytest.approx(2 * ratio * loss, rel=1e-5, abs=1e-6)
    found = auxiliary_gradient(objective)
    np.testing.assert_allclose(found[STRONG], 2 * ratio * gradient, rtol=1e-5, atol=1e-6)
    assert (found[STRONG][gradient == 0] == 0).all()
    assert (np.delete(found, STRONG, axis=0) == 0).all()
    student_ = objective.student
    assert isinstance(student_, Table)
    assert student_.weight.grad is None  # nothing reaches the main head


@pytest.mark.parametrize(("tau", "size"), [(0.9, 3), (0.95, 2), (0.97, None)])
def test_worked_example(tau: float, size: int | None) -> None:
    """Constant logits: max p times the logarithm of the number of classes that are left."""
    z = np.zeros((8, 4))
    z[WEAK] = np.log([EXAMPLE, EXAMPLE, [0.004, 0.988, 0.004, 0.004]])
    objective = objective_of(z, np.full((8, 4), 3.0), tau=tau, alignment=0)
    terms = objective.terms(batches([0, 1], hidden=[0, 1, 1]))
    # One of three is certain at the first batch: r = 1/3. Two uncertain ones of three.
    expected = 0.0 if size is None else (1 / 3) * (2 / 3) * 0.5 * np.log(size)
    assert value(terms["shrunk"]).item() == pytest.approx(expected, rel=1e-6)
    seen = {name: value(parts[0]).item() for name, parts in objective.observed.items()}
    assert seen["coverage"] == pytest.approx(1 / 3)
    assert seen["used"] == pytest.approx(1 / 3 if size is None else 1.0)
    assert seen["certain_ratio"] == pytest.approx(1 / 3)
    assert seen["precision"] == 1.0
    if size is not None:
        assert seen["shrunk/precision"] == 0.5


def test_gradient_reaches_the_backbone(digits: ImageData) -> None:
    few = load("digits", seed=0, labels_per_class=5)
    objective = ShrinkMatch(student(few), tau=0.5, mu=2, alignment=0).train()
    objective.certain_ratio.update(torch.ones(1))
    some = {name: stream.batch(0) for name, stream in objective.streams(few, 20, seed=0).items()}
    shrunk = value(objective.terms(some)["shrunk"])  # type: ignore[arg-type]
    assert shrunk.item() > 0
    shrunk.backward()
    missing = [name for name, p in objective.student.named_parameters() if p.grad is None]
    assert missing == ["body.6.weight", "body.6.bias"]
    assert all(p.grad is not None for p in objective.auxiliary.parameters())


def test_uniform_predictions_teach_nothing() -> None:
    rng = np.random.default_rng(0)
    objective = objective_of(np.zeros((8, 4)), rng.normal(size=(8, 4)), alignment=0)
    objective.certain_ratio.update(torch.ones(1))
    assert value(objective.terms(batches([0, 1]))["shrunk"]).item() == 0


def test_without_a_certain_sample_so_far_the_weight_is_0() -> None:
    z = np.zeros((8, 4))
    z[WEAK] = np.log(EXAMPLE)
    objective = objective_of(z, np.zeros((8, 4)), tau=0.9, alignment=0)
    assert value(objective.terms(batches([0, 1]))["shrunk"]).item() == 0
    assert value(objective.observed["used"][0]).item() == 0


@given(LOGITS, LABELS)
def test_where_all_are_certain_it_is_fixmatch_with_alignment(z: Floats, labels: list[int]) -> None:
    ours = objective_of(z, np.ones((8, 4)), tau=0.2)
    theirs = FixMatch(Table(z), tau=0.2, target="soft", alignment=32)
    terms, expected = ours.terms(batches(labels)), theirs.terms(batches(labels))
    assert value(terms.pop("shrunk")).item() == 0
    assert {k: value(v).item() for k, v in terms.items()} == {k: value(v).item() for k, v in expected.items()}


def test_classes_are_ordered_by_the_aligned_predictions() -> None:
    """Class 0 is in the lead everywhere; aligned, each sample has a class of its own."""
    z = np.zeros((8, 4))
    z[WEAK] = np.log([[0.55, 0.3, 0.1, 0.05], [0.55, 0.1, 0.3, 0.05], [0.6, 0.05, 0.05, 0.3]])
    p = aligned(softmax(z[WEAK]))
    assert p.argmax(-1).tolist() == [1, 2, 3]
    head = np.random.default_rng(0).normal(size=(8, 4))
    objective = objective_of(z, head, tau=0.6)
    objective.certain_ratio.update(torch.ones(1))
    loss, _ = shrunk_loss(p, head[STRONG], 0.6)
    assert loss > 0.1
    ratio = 0.999 + 0.001 * (p.max(-1) >= 0.6).mean()
    assert value(objective.terms(batches([0, 1]))["shrunk"]).item() == pytest.approx(ratio * loss, rel=1e-5)


def test_two_classes_cannot_be_shrunk() -> None:
    objective = objective_of(np.random.default_rng(0).normal(size=(8, 2)), np.ones((8, 2)), tau=0.99)
    objective.certain_ratio.update(torch.ones(1))
    assert value(objective.terms(batches([0, 1]))["shrunk"]).item() == 0


@pytest.mark.parametrize("restart", [None, 1, 3])
def test_the_ratio_goes_on_over_all_updates_or_begins_anew(restart: int | None) -> None:
    z = np.zeros((8, 4))
    objective = objective_of(z, z, tau=0.9, ratio_decay=0.5, ratio_restart=restart, alignment=0)
    table = objective.student
    assert isinstance(table, Table)
    expected = None
    for number, certain in enumerate((1, 3, 0, 2)):
        if restart and number % restart == 0:
            expected = None
        z = np.zeros((8, 4))
        z[WEAK] = np.log(EXAMPLE)  # the others teach among fewer classes, which is no certainty
        z[WEAK[:certain], 0] = 20.0
        table.set_logits(z)
        some = batches([0, 1])
        objective.terms(some)
        objective.finish(some)
        expected = certain / 3 if expected is None else 0.5 * expected + 0.5 * certain / 3
        assert objective.certain_ratio.average.item() == pytest.approx(expected, rel=1e-6)
    assert objective.summary()["coverage"] == pytest.approx(0.5)


def test_arguments() -> None:
    head = ShrinkMatch(Table(np.zeros((8, 4)))).auxiliary
    assert [type(m) for m in head] == 2 * [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU] + [nn.Linear]
    assert [m.negative_slope for m in head if isinstance(m, nn.LeakyReLU)] == [0.1, 0.1]
    with pytest.raises(LimbeckError, match=r"ratio_decay is 1\.5"):
        ShrinkMatch(Table(np.zeros((8, 4))), ratio_decay=1.5)
    with pytest.raises(LimbeckError, match="ratio_restart is 0"):
        ShrinkMatch(Table(np.zeros((8, 4))), ratio_restart=0)
    with pytest.raises(LimbeckError, match="ShrinkMatch needs the features"):
        ShrinkMatch(Classifier(nn.Flatten(), [*"abcd"]))


def test_the_finished_model_is_without_the_auxiliary_head(tmp_path: Path) -> None:
    few = load("digits", seed=0, labels_per_class=5)
    objective = ShrinkMatch(student(few), mu=2, ema_decay=0.0)
    weights = fit(objective, few, tmp_path, updates=3, batch_size=10)
    assert_equal(weights, dict(objective.trained().state_dict()))  # an average that keeps nothing


def test_more_samples_are_used_from_the_first_certain_one_on(tmp_path: Path) -> None:
    few = load("digits", seed=0, labels_per_class=5)
    shares = {}
    for kind in (FixMatch, ShrinkMatch):
        objective = kind(student(few), mu=4, alignment=8, target="soft", ema_decay=0.9)
        fit(objective, few, tmp_path / kind.__name__, updates=60, batch_size=10)
        shares[kind] = objective.summary()
    assert shares[FixMatch]["used"] == shares[FixMatch]["coverage"]
    assert shares[ShrinkMatch]["used"] > shares[FixMatch]["used"] + 0.1
