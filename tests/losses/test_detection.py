import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses.detection import box_l1, objectness, weighted_cross_entropy


def _with_losses(values: list[float]) -> torch.Tensor:
    """Logits of two classes whose cross-entropy with class 0 is each of ``values``."""
    # -log sigmoid(d) = v, so d = -log(exp(v) - 1).
    return torch.tensor([[-math.log(math.expm1(value)), 0.0] for value in values], dtype=torch.float64)


def test_worked_example() -> None:
    # Cross-entropies 1 (foreground), 2 and 4 (background), background weights 0.5 and 0: (1 + 1) / 1.5.
    loss = weighted_cross_entropy(_with_losses([1, 2, 4]), torch.zeros(3, dtype=torch.int64), torch.tensor([1, 0.5, 0]))
    assert float(loss.value) == pytest.approx(4 / 3, rel=1e-12)


def test_background_weights_of_one_and_zero() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 4
    foreground = labels > 0
    values = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    ones = torch.ones(12, dtype=torch.float64)
    assert torch.equal(weighted_cross_entropy(logits, labels, ones).value, values.mean())
    zeros = foreground.double()
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, zeros).value, values[foreground].mean())


def test_small_weights_are_not_blown_up() -> None:
    loss = weighted_cross_entropy(
        _with_losses([2.0, 4.0]), torch.zeros(2, dtype=torch.int64), torch.tensor([0.25, 0.125])
    )
    assert float(loss.value) == pytest.approx(0.25 * 2 + 0.125 * 4, rel=1e-12)
    assert float(loss.count) == 1


def test_labels_of_weight_zero_are_not_read() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.tensor([1, -7]), torch.tensor([1.0, 0.0])).value
    assert float(loss.detach()) == pytest.approx(math.log(3), rel=1e-6)  # float32
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[1].any()


@pytest.mark.parametrize("label", [-1, -100, 3])
def test_labels_that_are_not_there_are_errors(label: int) -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        weighted_cross_entropy(torch.zeros(2, 3), torch.tensor([1, label]), torch.ones(2))


@given(
    st.lists(
        st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.integers(0, 1), st.floats(0, 1)),
        min_size=0,
        max_size=8,
    )
)
@settings(max_examples=50, deadline=None)
def test_weighted_cross_entropy_against_numpy(rows: list[tuple[float, float, int, float]]) -> None:
    total, count = 0.0, 0.0
    for first, second, label, weight in rows:
        top = max(first, second)
        normaliser = top + np.log(np.exp(first - top) + np.exp(second - top))
        total += weight * (normaliser - (first, second)[label])
        count += weight
    logits = torch.tensor([row[:2] for row in rows], dtype=torch.float64).reshape(-1, 2)
    labels = torch.tensor([row[2] for row in rows], dtype=torch.int64)
    weights = torch.tensor([row[3] for row in rows], dtype=torch.float64)
    # float64, logits up to 1e4: absolute rounding of about 1e-11.
    assert float(weighted_cross_entropy(logits, labels, weights).value) == pytest.approx(
        total / max(count, 1.0), rel=1e-9, abs=1e-9
    )


def test_box_l1_against_numpy() -> None:
    rng = np.random.default_rng(0)
    deltas, targets = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    foreground = np.array([True, False, True, False, False, True])
    expected = np.abs(deltas - targets)[foreground].sum() / 6
    targets[1] = np.inf  # a background region has no box
    loss = box_l1(torch.from_numpy(deltas), torch.from_numpy(targets), torch.from_numpy(foreground))
    assert float(loss.value) == pytest.approx(expected, rel=1e-12)


def test_box_l1_of_nothing_is_zero_with_a_gradient() -> None:
    for count in (0, 3):
        deltas = torch.ones(count, 4, requires_grad=True)
        loss = box_l1(deltas, torch.zeros(count, 4), torch.zeros(count, dtype=torch.bool)).value
        assert float(loss.detach()) == 0
        loss.backward()
        assert deltas.grad is not None
        assert not deltas.grad.any()


def test_objectness_against_numpy() -> None:
    logits, foreground = np.array([-3.0, 0.5, 2.0]), np.array([False, True, False])
    probability = 1 / (1 + np.exp(-logits))
    expected = -np.log(np.where(foreground, probability, 1 - probability)).mean()
    loss = objectness(torch.from_numpy(logits), torch.from_numpy(foreground))
    assert float(loss.value) == pytest.approx(expected, rel=1e-12)


def test_gradients() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels, weight = torch.tensor([0, 1, 2, 0, 1]), torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: weighted_cross_entropy(z, labels, weight).value, logits)
    deltas = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    used = torch.tensor([True, False, True, True, False])
    assert torch.autograd.gradcheck(lambda d: box_l1(d, torch.zeros_like(d), used).value, deltas)
    anchors = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: objectness(a, used).value, anchors)
