import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

from limbeck.errors import LimbeckError
from limbeck.metrics.generation import energy_distance, frechet_distance, modes_hit, sliced_wasserstein


def rows(count, size, seed, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, size)) + shift)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 9), m=st.integers(2, 9), size=st.integers(1, 4), seed=st.integers(0, 99))
def test_energy_distance_by_brute_force(n, m, size, seed):
    x, y = rows(n, size, seed).numpy(), rows(m, size, seed + 100).numpy()

    def mean(a, b, same):
        pairs = [np.linalg.norm(p - q) for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
        return np.mean(pairs)

    expected = 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)
    assert energy_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, abs=1e-6)


def test_energy_distance_against_scipy_in_one_dimension():
    """SciPy gives the root of twice the integral of (F - G)^2, from all pairs, those of a sample with itself too."""
    x, y = rows(3000, 1, 0), rows(2500, 1, 1, shift=1.0)
    expected = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    within = sum(float(torch.cdist(one, one).mean()) / (len(one) - 1) for one in (x, y))
    assert energy_distance(x, y) == pytest.approx(expected - within, abs=1e-6)


def test_sliced_wasserstein_in_one_dimension_is_wasserstein():
    x, y = rows(500, 1, 0), rows(500, 1, 1, shift=0.7)
    expected = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert sliced_wasserstein(x, y) == pytest.approx(expected, rel=1e-9)


def test_sliced_wasserstein_of_a_shift():
    """A shift by v moves the projection on u by |u v|, whose mean over the circle is 2 |v| / pi."""
    x = rows(400, 2, 0)
    shifted = x + torch.tensor([3.0, 4.0])
    # 256 directions: the standard deviation of |cos| is 0.31, of its mean 0.02.
    assert sliced_wasserstein(shifted, x) == pytest.approx(5 * 2 / np.pi, rel=0.1)
    assert sliced_wasserstein(shifted, x) == sliced_wasserstein(shifted, x)
    assert sliced_wasserstein(x, x[torch.randperm(400)]) == pytest.approx(0, abs=1e-12)


def test_sliced_wasserstein_of_sets_of_different_sizes():
    x = rows(2000, 1, 0)
    twice = torch.cat([x, x])
    assert sliced_wasserstein(twice, x) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(x, rows(999, 1, 5, shift=2.0)) == pytest.approx(2.0, abs=0.1)


def test_frechet_distance_against_scipy():
    x, y = rows(200, 5, 0), rows(300, 5, 1, shift=0.5) @ torch.diag(torch.tensor([1.0, 2, 3, 0.5, 1]).double())
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    gap = x.numpy().mean(0) - y.numpy().mean(0)
    expected = gap @ gap + np.trace(a + b - 2 * np.real(linalg.sqrtm(a @ b)))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x + 2.0, x) == pytest.approx(20, rel=1e-9)
    # A covariance without full rank: fewer samples than features.
    few = rows(3, 5, 2)
    # Square roots of eigenvalues that should be 0 and are 1e-16.
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    one = rows(50, 1, 3)
    assert frechet_distance(one * 2, one) == pytest.approx(
        float(one.mean() ** 2 + one.var()), rel=1e-9
    )  # (2 s - s)^2 + (2 m - m)^2


def test_modes_hit():
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    spread = centres.repeat_interleave(100, dim=0)
    assert modes_hit(spread, centres, reach=0.1) == 4
    assert modes_hit(spread[:200], centres, reach=0.1) == 2
    assert modes_hit(spread + 0.2, centres, reach=0.1) == 0
    few = torch.cat([spread[:300], spread[300:349]])  # 49 of 349: more than half of a quarter of them
    assert modes_hit(few, centres, reach=0.1) == 4
    assert modes_hit(torch.cat([spread[:300], spread[300:310]]), centres, reach=0.1) == 3


@pytest.mark.parametrize("distance", [energy_distance, sliced_wasserstein, frechet_distance])
def test_refusals(distance):
    good = rows(5, 2, 0)
    with pytest.raises(LimbeckError, match="2 numbers each and real ones 3"):
        distance(good, rows(5, 3, 0))
    with pytest.raises(LimbeckError, match="1 generated samples"):
        distance(good[:1], good)
    broken = good.clone()
    broken[3, 1] = torch.nan
    with pytest.raises(LimbeckError, match="generated sample 3"):
        distance(broken, good)
