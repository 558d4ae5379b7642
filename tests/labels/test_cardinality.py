import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.labels.cardinality import cardinality_messages


def by_logarithms(log_odds, count, strength):
    """The messages from sums over all counts of the others, variable after variable, in log space."""
    found = []
    for i in range(len(log_odds)):
        logs = np.zeros(1)  # of the counts 0 ... of the others, up to a constant
        for a in np.delete(log_odds, i):
            logs = np.logaddexp(np.append(logs, -np.inf), np.append(-np.inf, logs + a))
        sums = np.arange(len(logs))
        with np.errstate(invalid="ignore"):
            penalties = [np.where(sums + y == count, 0.0, strength * (sums + y - count) ** 2.0) for y in (0, 1)]
        off, on = (np.logaddexp.reduce(logs - penalty) for penalty in penalties)
        found.append(on - off)
    return np.array(found)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 17),
    st.sampled_from([0.1, 3.0, 30.0]),
    st.sampled_from([-5000.0, 0.0, 0.0, 400.0]),
    st.sampled_from([0.05, 1, 20]),
)
@settings(max_examples=60, deadline=None)
def test_against_log_space(seed, size, scale, shift, strength):
    rng = np.random.default_rng(seed)
    log_odds = shift + rng.normal(size=(3, size)) * scale
    counts = rng.integers(0, size + 1, size=3)
    found = cardinality_messages(torch.from_numpy(log_odds), torch.from_numpy(counts), strength)
    expected = np.stack([by_logarithms(a, y, strength) for a, y in zip(log_odds, counts, strict=True)])
    # Both are differences of sums of the log-odds: a few roundings of float64 at their size.
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-10 + 1e-14 * size * abs(shift))


def test_exact_count():
    rng = np.random.default_rng(0)
    log_odds, counts = rng.normal(size=(4, 9)) * 5, np.array([1, 4, 7, 8])
    found = cardinality_messages(torch.from_numpy(log_odds), torch.from_numpy(counts), math.inf)
    expected = np.stack([by_logarithms(a, y, math.inf) for a, y in zip(log_odds, counts, strict=True)])
    np.testing.assert_allclose(found, expected, atol=1e-10)
    # None or all: certain, whatever the others say.
    sure = torch.from_numpy(log_odds)[:2] + cardinality_messages(
        torch.from_numpy(log_odds)[:2], torch.tensor([0, 9]), math.inf
    )
    assert (sure[0] < -500).all()
    assert (sure[1] > 500).all()


@pytest.mark.parametrize("size", [100, 512])
def test_large_bags_of_sure_variables(size):
    """Log-odds of hundreds on both sides, and a count far from what they say: nothing underflows."""
    rng = np.random.default_rng(1)
    log_odds = np.where(np.arange(size) < size // 3, 300.0, -300.0) + rng.normal(size=size)
    for count in (0, size // 5, size // 2, size):
        found = cardinality_messages(torch.from_numpy(log_odds)[None], torch.tensor([count]), 2.0)[0]
        places = rng.choice(size, 6, replace=False)
        for place in places:
            order = np.r_[place, np.delete(np.arange(size), place)]
            expected = by_logarithms_first(log_odds[order], count, 2.0)
            assert float(found[place]) == pytest.approx(expected, rel=1e-9, abs=1e-8)


def by_logarithms_first(log_odds, count, strength):
    """The message to the first variable only."""
    logs = np.zeros(1)
    for a in log_odds[1:]:
        logs = np.logaddexp(np.append(logs, -np.inf), np.append(-np.inf, logs + a))
    sums = np.arange(len(logs))
    off, on = (np.logaddexp.reduce(logs - strength * (sums + y - count) ** 2) for y in (0, 1))
    return on - off


def test_empty_places_change_nothing():
    log_odds = torch.randn(2, 5, dtype=torch.float64)
    counts = torch.tensor([2, 3])
    wide = torch.full((2, 9), -torch.inf, dtype=torch.float64)
    wide[:, [0, 2, 3, 6, 8]] = log_odds
    found = cardinality_messages(wide, counts, 0.7)[:, [0, 2, 3, 6, 8]]
    torch.testing.assert_close(found, cardinality_messages(log_odds, counts, 0.7), rtol=1e-12, atol=1e-12)


def test_order_and_classes_may_be_exchanged():
    log_odds = 3 * torch.randn(2, 7, dtype=torch.float64)
    counts = torch.tensor([2, 5])
    found = cardinality_messages(log_odds, counts, 0.7)
    order = torch.randperm(7)
    torch.testing.assert_close(cardinality_messages(log_odds[:, order], counts, 0.7), found[:, order])
    torch.testing.assert_close(cardinality_messages(-log_odds, 7 - counts, 0.7), -found)


def test_no_strength_no_message():
    assert not cardinality_messages(torch.randn(2, 4), torch.tensor([0, 4]), 0.0).any()
