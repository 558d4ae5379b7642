from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.classification.supervised import Supervised
from limbeck.methods.long_tailed.logit_adjustment import LogitAdjustment
from limbeck.stages.objective import Plan
from tests.methods.tables import Floats, Table, assert_equal, batch, fit, onehot, softmax, student, value

FEW = settings(max_examples=30, deadline=None)
LOGITS = arrays(np.float64, (4, 3), elements=st.floats(-20, 20))
LABELS = st.lists(st.integers(0, 2), min_size=4, max_size=4)
COUNTS = st.tuples(*[st.integers(1, 1000)] * 3)


def plan(counts: tuple[int, ...]) -> Plan:
    return Plan(num_samples=4, num_classes=len(counts), updates=1, epochs=1, class_counts=counts)


@FEW
@given(LOGITS, LABELS, COUNTS, st.floats(0, 3))
def test_equation_and_gradient(z: Floats, labels: list[int], counts: tuple[int, ...], tau: float) -> None:
    objective = LogitAdjustment(Table(z), tau)
    objective.begin(plan(counts))
    term = value(objective.terms(batch(labels))["ce"])
    term.backward()
    probabilities = softmax(z + tau * np.log(np.asarray(counts, dtype=np.float64)))
    expected = -np.log((probabilities * onehot(labels, 3)).sum(-1)).mean()
    assert term.item() == pytest.approx(expected, abs=1e-10)
    gradient = objective.student.gradient()  # type: ignore[attr-defined]
    np.testing.assert_allclose(gradient, (probabilities - onehot(labels, 3)) / 4, atol=1e-12)


def test_without_a_label_nothing_counts() -> None:
    z = np.array([[1.0, 0.0], [0.0, 3.0]])
    both, first = (LogitAdjustment(Table(z)) for _ in range(2))
    for objective in (both, first):
        objective.begin(plan((9, 1)))
    found = value(first.terms(batch([0, -1]))["ce"]).item()
    expected = -np.log(9 * np.e / (9 * np.e + 1))
    assert found == pytest.approx(expected, abs=1e-12)
    assert value(both.terms(batch([0, 1]))["ce"]).item() != pytest.approx(found)


def test_with_tau_0_it_is_cross_entropy_bit_for_bit(digits: ImageData, tmp_path: Path) -> None:
    ours = fit(LogitAdjustment(student(digits), tau=0), digits, tmp_path / "ours")
    assert_equal(ours, fit(Supervised(student(digits)), digits, tmp_path / "ce"))
    other = fit(LogitAdjustment(student(digits), tau=2), digits, tmp_path / "other")
    assert any(not torch.equal(other[name], ours[name]) for name in ours)


def test_wrong_input() -> None:
    with pytest.raises(LimbeckError, match="tau is -1"):
        LogitAdjustment(Table(np.zeros((1, 2))), tau=-1)
    objective = LogitAdjustment(Table(np.zeros((1, 2))))
    with pytest.raises(LimbeckError, match=r"class_counts=\.\.\."):
        objective.begin(Plan(num_samples=4, num_classes=2, updates=1, epochs=1))
    with pytest.raises(LimbeckError, match=r"those number \[1\]"):
        objective.begin(plan((4, 0)))
