import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torchmetrics.functional.classification import multiclass_calibration_error

from limbeck.errors import LimbeckError
from limbeck.metrics import adaptive_ece, ece, fit_temperature, nll, reliability


def samples(n, classes, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, (logits + 2 * noise).argmax(-1)


def ece_by_loops(logits, labels, bins):
    p = softmax(logits.numpy(), axis=-1)
    confidence, correct = p.max(-1), p.argmax(-1) == labels.numpy()
    total = 0.0
    for low, high in zip(np.linspace(0, 1, bins + 1)[:-1], np.linspace(0, 1, bins + 1)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 200), classes=st.integers(2, 12), bins=st.integers(1, 20), seed=st.integers(0, 99))
def test_ece_against_loops_and_torchmetrics(n, classes, bins, seed):
    logits, labels = samples(n, classes, seed)
    ours = ece(logits, labels, bins)
    assert ours == pytest.approx(ece_by_loops(logits, labels, bins), abs=1e-13)
    theirs = multiclass_calibration_error(logits.softmax(-1), labels, classes, n_bins=bins, norm="l1")
    # torchmetrics bins in float32.
    assert ours == pytest.approx(theirs.item(), abs=1e-6)


def test_reliability_by_hand_and_edges_belong_to_the_lower_bin():
    # Confidences 0.75, 0.75 (one right), 0.5 (a tie: class 0 is predicted) and 1.
    logits = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64).log()
    labels = torch.tensor([0, 1, 0, 0])
    diagram = reliability(logits, labels, bins=4)
    assert diagram.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert diagram.count.tolist() == [0, 1, 2, 1]
    # exp(log 0.75) may lie one rounding off.
    np.testing.assert_allclose(diagram.confidence.numpy(), [np.nan, 0.5, 0.75, 1], rtol=1e-15)
    assert diagram.accuracy.tolist()[1:] == [1.0, 0.5, 1.0]
    assert ece(logits, labels, 4) == pytest.approx((0.5 + 2 * 0.25) / 4, abs=1e-15)


def test_perfect_calibration_is_zero():
    logits = torch.tensor([0.95, 0.05], dtype=torch.float64).log().repeat(20, 1)
    labels = torch.tensor([1] + [0] * 19)
    assert ece(logits, labels) == pytest.approx(0, abs=1e-15)
    assert adaptive_ece(logits, labels) == pytest.approx(0, abs=1e-15)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 100), bins=st.integers(1, 20), seed=st.integers(0, 99))
def test_adaptive_ece_against_numpy(n, bins, seed):
    logits, labels = samples(n, 4, seed)
    p = softmax(logits.numpy(), axis=-1)
    order = np.argsort(-p.max(-1))
    gaps = (p.max(-1) - (p.argmax(-1) == labels.numpy()))[order]
    expected = sum(abs(part.sum()) for part in np.array_split(gaps, bins)) / n
    assert adaptive_ece(logits, labels, bins) == pytest.approx(expected, abs=1e-13)


def test_adaptive_ece_shares_ties_over_its_bins():
    logits = torch.zeros(4, 2)
    for labels in ([0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]):
        assert adaptive_ece(logits, torch.tensor(labels), 2) == 0.0


@settings(max_examples=15, deadline=None)
@given(classes=st.integers(2, 8), seed=st.integers(0, 99), scale=st.sampled_from([0.5, 2.0, 20.0]))
def test_fitted_temperature_is_the_minimum(classes, seed, scale):
    logits, labels = samples(80, classes, seed, scale)
    temperature = fit_temperature(logits, labels)

    def value(log_t):
        q = log_softmax(logits.numpy() / np.exp(log_t), axis=-1)
        return -q[np.arange(80), labels.numpy()].mean()

    found = minimize_scalar(value, bounds=(np.log(0.01), np.log(100)), method="bounded", options={"xatol": 1e-10})
    # A minimum found from values alone is known to the root of the rounding, 1e-8 relative to the curvature.
    assert np.log(temperature) == pytest.approx(found.x, abs=1e-5) or value(np.log(temperature)) <= found.fun
    inverse = 1 / temperature
    p = softmax(logits.numpy() * inverse, axis=-1)
    slope = ((p * logits.numpy()).sum(-1) - logits.numpy()[np.arange(80), labels.numpy()]).mean()
    if 0.011 < temperature < 99:
        # The derivative itself vanishes to rounding, which fixes T to 1e-6.
        assert abs(slope) < 1e-10 * scale
    assert nll(logits / temperature, labels) <= nll(logits, labels) + 1e-12


def test_fitting_again_changes_nothing_and_scaling_scales():
    logits, labels = samples(200, 5)
    temperature = fit_temperature(logits, labels)
    assert fit_temperature(logits / temperature, labels) == pytest.approx(1, abs=1e-9)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * temperature, rel=1e-9)


def test_temperature_at_the_bounds():
    right = torch.eye(3)
    assert fit_temperature(right, torch.arange(3)) == 0.01
    assert fit_temperature(1e4 * right, torch.arange(3)) == 1.0  # saturated: flat
    assert fit_temperature(right, torch.tensor([1, 2, 0])) == 100.0
    assert fit_temperature(torch.zeros(3, 3), torch.arange(3)) == 1.0
    with pytest.raises(LimbeckError, match="-inf"):
        fit_temperature(torch.tensor([[0.0, -torch.inf]]), torch.tensor([0]))


def test_no_bins_are_refused():
    for metric in (ece, adaptive_ece, reliability):
        with pytest.raises(LimbeckError, match="bins is 0"):
            metric(torch.zeros(1, 2), torch.tensor([0]), 0)
