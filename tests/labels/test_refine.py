import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.labels import align_distribution, mix_with_past, one_hot, optimal_mix_weight, sharpen, smooth


def probabilities(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


@settings(deadline=None)
@given(seed=st.integers(0, 99), temperature=st.sampled_from([0.1, 0.5, 1, 3.0]))
def test_sharpen_against_numpy(seed, temperature):
    p = probabilities(2, 3, 5, seed=seed)
    power = p.numpy() ** (1 / temperature)
    np.testing.assert_allclose(sharpen(p, temperature).numpy(), power / power.sum(-1, keepdims=True), rtol=1e-12)


def test_sharpen_limits():
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0]])
    # 1 / 0.001 would underflow every power of these.
    assert sharpen(p * 1.0, 0.001).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(sharpen(p, 1), p)
    # 1e-6 / 0.2: the largest relative change of a power of 1e-6 here.
    torch.testing.assert_close(sharpen(p[:, :3], 1e6), torch.full((1, 3), 1 / 3), atol=1e-5, rtol=0)
    with pytest.raises(LimbeckError, match="temperature is 0"):
        sharpen(p, 0)


def test_mix_with_past_by_hand():
    past = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    expected = torch.tensor([[0.08, 0.8, 0.12]], dtype=torch.float64)
    torch.testing.assert_close(mix_with_past(torch.tensor([1]), past, 0.4), expected)
    torch.testing.assert_close(mix_with_past(one_hot(torch.tensor([1]), 3).double(), past, 0.4), expected)
    torch.testing.assert_close(mix_with_past(torch.tensor([1]), past, torch.tensor(0.4).double()), expected)


@settings(deadline=None)
@given(seed=st.integers(0, 99), alpha=st.floats(0, 1))
def test_mix_with_past_properties(seed, alpha):
    past = probabilities(4, 6, seed=seed)
    labels = torch.randint(6, (4,), generator=torch.Generator().manual_seed(seed))
    q = mix_with_past(labels, past, alpha)
    torch.testing.assert_close(q.sum(-1), torch.ones(4, dtype=torch.float64))
    assert (q >= 0).all()
    if alpha < 0.49:
        assert torch.equal(q.argmax(-1), labels)
    each = torch.tensor([0.0, alpha, 1.0, alpha], dtype=torch.float64)
    mixed = mix_with_past(labels, past, each)
    assert torch.equal(mixed[0], one_hot(labels, 6, torch.float64)[0])
    assert torch.equal(mixed[1], q[1])
    assert torch.equal(mixed[2], past[2])


def test_mix_with_past_limits():
    labels, past = torch.tensor([2, 0]), probabilities(2, 3)
    assert torch.equal(mix_with_past(labels, past, 0.0), one_hot(labels, 3, torch.float64))
    own = one_hot(labels, 3, torch.float64)
    assert torch.equal(mix_with_past(labels, own, 0.3), own)
    uniform = torch.full((2, 3), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(mix_with_past(labels, uniform, 0.1), smooth(own, 0.1))
    half = mix_with_past(labels, past.half(), 0.5)
    assert half.dtype == torch.float32
    assert torch.equal(half, mix_with_past(labels, past.half().float(), 0.5))


def test_smooth():
    p = torch.tensor([[1.0, 0.0]])
    assert smooth(p, 0.2).tolist() == pytest.approx(np.array([[0.9, 0.1]]))
    assert torch.equal(smooth(p, 0), p)
    assert smooth(p, 1).tolist() == [[0.5, 0.5]]
    assert smooth(torch.ones(1, 1), 0.3).item() == 1.0
    with pytest.raises(LimbeckError, match=r"epsilon is 1\.2"):
        smooth(p, 1.2)


def test_align_distribution():
    p = probabilities(5, 4)
    predicted, wanted = probabilities(4, seed=1), probabilities(4, seed=2)
    expected = p.numpy() * (wanted.numpy() + 1e-6) / (predicted.numpy() + 1e-6)
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(align_distribution(p, predicted, wanted).numpy(), expected, rtol=1e-13)
    torch.testing.assert_close(align_distribution(p, predicted, predicted), p)
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(align_distribution(p, predicted), align_distribution(p, predicted, uniform))
    # A class that was never predicted does not blow up.
    assert align_distribution(p, torch.tensor([1.0, 0, 0, 0]).double()).isfinite().all()


def squared_error(alpha, y, u, v):
    return ((alpha * u + (1 - alpha) * v - y) ** 2).sum()


@settings(deadline=None)
@given(seed=st.integers(0, 199), shape=st.sampled_from([(5, 3), (1, 2), (2, 4, 3)]))
def test_optimal_mix_weight_against_a_grid(seed, shape):
    generator = np.random.default_rng(seed)
    y, u, v = generator.normal(size=(3, *shape))
    found = float(optimal_mix_weight(*(torch.tensor(values) for values in (y, u, v))))
    grid = np.linspace(0, 1, 1001)
    errors = [squared_error(alpha, y, u, v) for alpha in grid]
    assert squared_error(found, y, u, v) <= min(errors) + 1e-12
    # Half the distance of two points of the grid.
    assert abs(found - grid[np.argmin(errors)]) <= 0.0005 + 1e-9


def test_optimal_mix_weight_limits():
    u, v = probabilities(6, 3), probabilities(6, 3, seed=1)
    assert float(optimal_mix_weight(u, u, v)) == 1.0
    assert float(optimal_mix_weight(v, u, v)) == 0.0
    assert float(optimal_mix_weight(0.3 * u + 0.7 * v, u, v)) == pytest.approx(0.3, abs=1e-12)
    # Beyond both ends, and no answer at all: every weight would do.
    assert float(optimal_mix_weight(2 * u - v, u, v)) == 1.0
    assert float(optimal_mix_weight(2 * v - u, u, v)) == 0.0
    assert float(optimal_mix_weight(torch.tensor([0] * 6), u, u)) == 1.0
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert optimal_mix_weight(labels, u, v) == optimal_mix_weight(one_hot(labels, 3, torch.float64), u, v)
    # Differences of 1e-6 between float32 probabilities still have a direction.
    near = (u + 1e-6 * (v - u)).float()
    assert float(optimal_mix_weight(u.float(), u.float(), near)) == 1.0
