"""Against refits by the definition and the published toy example."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from limbeck.errors import LimbeckError
from limbeck.labels import one_hot, optimal_mix_weight
from limbeck.models.kernel_ridge import distilled_ridge, distilled_ridge_limit, distilled_shrinkage, rbf_kernel, ridge

TOY = (
    *(0.38476636465198066, 1.2333967683416893, 1.33232242218057, 0.6920159488889518, -0.29756145531871736),
    *(-0.24189291901377769, -0.7964485769175675, -0.9616480167034174, -0.49672509509916934, -0.3469066003991437),
    0.5589512650600734,
)
Y = torch.tensor(TOY, dtype=torch.float64)[:, None]
X = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
GRID = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
SINE = torch.sin(2 * math.pi * GRID)
K = rbf_kernel(X, X, gamma=80.0)
PENALTY = 0.2


def error(coefficients: torch.Tensor) -> float:
    return float((rbf_kernel(GRID, X, gamma=80.0) @ coefficients - SINE).square().mean())


def refits(gram: np.ndarray, targets: np.ndarray, penalty: float, alphas: list[float]) -> list[np.ndarray]:
    """Step after step by the definition: mix the targets, fit, predict."""
    inverse = np.linalg.inv(gram + penalty * np.eye(len(gram)))
    past, found = targets, []
    for alpha in alphas:
        found.append(inverse @ (alpha * targets + (1 - alpha) * past))
        past = gram @ found[-1]
    return found


# Rows of the released example, recomputed to as many digits.


@pytest.mark.parametrize(
    ("alpha", "steps", "limit"),
    [
        (0.0, (0.16477, 0.15076, 0.14915, 0.15561, 0.16735, 0.18251), 0.49505),
        (0.35, (0.16477, 0.15424, 0.15089, 0.14983, 0.14954, 0.14948), 0.14959),
        (0.25, (0.164773, 0.153089, 0.149576, 0.149029, 0.149460, 0.150113), 0.152502),
    ],
)
def test_toy_example(alpha: float, steps: tuple[float, ...], limit: float) -> None:
    found = [error(c) for c in distilled_ridge(K, Y, PENALTY, [alpha] * 6)]
    digits = 1e-6 if alpha == 0.25 else 1e-5
    assert found == pytest.approx(steps, abs=digits)
    assert error(distilled_ridge_limit(K, Y, PENALTY, alpha)) == pytest.approx(limit, abs=digits)


@pytest.mark.parametrize(
    ("d", "alpha", "expected", "limit"),
    [
        (4.0, 0.0, (0.952381, 0.907029, 0.863838, 0.822702), 0.0),
        (4.0, 0.25, (0.952381, 0.918367, 0.894072, 0.876718), 0.833333),
        (0.1, 0.0, (0.333333, 0.111111, 0.037037, 0.012346), 0.0),
        (0.1, 0.25, (0.333333, 0.166667, 0.125, 0.114583), 0.111111),
    ],
)
def test_one_eigenvalue_by_hand(d: float, alpha: float, expected: tuple[float, ...], limit: float) -> None:
    values = torch.tensor([d], dtype=torch.float64)
    assert distilled_shrinkage(values, PENALTY, [alpha] * 4).flatten().tolist() == pytest.approx(expected, abs=5e-7)
    # 400 steps at rate (1 - alpha) a_max <= 0.953: 3e-9 of the way is left.
    assert float(distilled_shrinkage(values, PENALTY, [alpha] * 400)[-1]) == pytest.approx(limit, abs=5e-7)
    gram = values[:, None]
    assert float(gram @ distilled_ridge_limit(gram, torch.ones(1, 1).double(), PENALTY, alpha)) == pytest.approx(
        limit, abs=5e-7
    )


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(1e-2, 10), st.integers(0, 99), st.sampled_from([1, 3])
)
def test_closed_form_is_refitting(alphas: list[float], penalty: float, seed: int, outputs: int) -> None:
    generator = np.random.default_rng(seed)
    half = generator.normal(size=(7, 5))  # of rank 5: two eigenvalues are 0
    gram, targets = half @ half.T, generator.normal(size=(7, outputs))
    found = distilled_ridge(torch.tensor(gram), torch.tensor(targets), penalty, alphas).numpy()
    # Rounding of eigenvalues of up to 30 counts 1 / penalty^2 in the coefficients: 1e4 times 1e-14.
    for mine, refit in zip(found, refits(gram, targets, penalty, alphas), strict=True):
        np.testing.assert_allclose(mine, refit, rtol=0, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.1, 0.35, 1.0])
def test_limit_is_ridge_with_a_larger_penalty(alpha: float) -> None:
    amplified = alpha * torch.linalg.solve(alpha * K + PENALTY * torch.eye(11).double(), Y)
    torch.testing.assert_close(distilled_ridge_limit(K, Y, PENALTY, alpha), amplified, rtol=0, atol=1e-10)
    last = distilled_ridge(K, Y, PENALTY, [alpha] * 500)[-1]
    torch.testing.assert_close(last, amplified, rtol=0, atol=1e-10)


def test_limits_of_alpha_and_penalty() -> None:
    plain = ridge(K, Y, PENALTY)
    for step in distilled_ridge(K, Y, PENALTY, [1.0] * 3):
        torch.testing.assert_close(step, plain, rtol=0, atol=1e-12)
    for alpha in (0.0, 0.5):
        torch.testing.assert_close(distilled_ridge(K, Y, PENALTY, [alpha])[0], plain, rtol=0, atol=1e-12)
    assert not distilled_ridge_limit(K, Y, PENALTY, 0.0).any()
    # Without a penalty A is the identity: nothing changes from step to step, however often.
    kept = distilled_shrinkage(torch.linalg.eigvalsh(K), 1e-15, [0.0] * 5)
    torch.testing.assert_close(kept, torch.ones_like(kept), rtol=0, atol=1e-9)


def test_distance_to_the_limit_shrinks_at_the_known_rate() -> None:
    values, alpha = torch.linalg.eigvalsh(K), 0.3
    limit = alpha * values / (alpha * values + PENALTY)
    left = (distilled_shrinkage(values, PENALTY, [alpha] * 30) - limit).abs().amax(-1)
    rate = (1 - alpha) * (values / (values + PENALTY)).max()
    ratios = left[1:] / left[:-1]
    assert bool((ratios <= rate + 1e-9).all())
    assert float(ratios[-1]) == pytest.approx(float(rate), abs=1e-3)


def test_small_directions_die_first_and_much_later_with_more_ground_truth() -> None:
    values = torch.tensor([4.0, 0.1], dtype=torch.float64)
    ratios = {a: (b := distilled_shrinkage(values, PENALTY, [a] * 6))[:, 0] / b[:, 1] for a in (0.0, 0.25, 0.75, 1.0)}
    assert bool((ratios[0.0].diff() > 0).all())
    # With ground truth the ratio ends at that of the limit; on the way it may pass it a little.
    assert bool((ratios[0.25][1:] > ratios[0.25][0]).all())
    assert bool((ratios[0.25][1:] < ratios[0.0][1:]).all())
    assert bool((ratios[0.75][1:] < ratios[0.25][1:]).all())
    torch.testing.assert_close(ratios[1.0], ratios[1.0][:1].expand(6), rtol=0, atol=1e-12)


def digits_curve(alphas: list[float]) -> tuple[list[float], list[float]]:
    """Test error and mean norm of the training predictions, 200 digits of which a fifth have a wrong label."""
    bunch = load_digits()
    images, labels = torch.tensor(bunch.data) / 16, torch.tensor(bunch.target)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)
    train, test = order[:200], order[200:]
    noisy = labels[train].clone()
    noisy[:40] = (noisy[:40] + torch.randint(1, 10, (40,), generator=generator)) % 10
    gram = rbf_kernel(images[train], images[train], gamma=0.05)
    other = rbf_kernel(images[test], images[train], gamma=0.05)
    steps = distilled_ridge(gram, one_hot(noisy, 10).double(), 0.02, alphas)
    truth = one_hot(labels[test], 10).double()
    return (
        [float((other @ c - truth).square().mean()) for c in steps],
        [float((gram @ c).norm(dim=-1).mean()) for c in steps],
    )


def test_pure_distillation_collapses_on_digits_and_guidance_stops_it() -> None:
    """Exact: no training, no noise of first weights."""
    pure, norms = digits_curve([0.0] * 30)
    assert all(after < before for before, after in itertools.pairwise(norms))
    best = pure.index(min(pure))
    assert 0 < best < 29
    assert all(after > before for before, after in itertools.pairwise(pure[best:]))
    guided, _ = digits_curve([0.35] * 30)
    assert guided[-1] - min(guided) < 0.1 * (pure[-1] - min(pure))


def test_estimated_weight_is_the_best_weight_of_a_step() -> None:
    """For kernels the rule is exact: no weight of a fine grid does better, step after step."""
    held_out, truth = rbf_kernel(GRID, X, gamma=80.0), SINE
    chosen: list[float] = [1.0]
    for _ in range(4):
        u = held_out @ distilled_ridge(K, Y, PENALTY, [1.0])[0]
        v = held_out @ distilled_ridge(K, Y, PENALTY, [*chosen, 0.0])[-1]
        alpha = float(optimal_mix_weight(truth, u, v))
        errors = [error(distilled_ridge(K, Y, PENALTY, [*chosen, a])[-1]) for a in np.linspace(0, 1, 101)]
        best = error(distilled_ridge(K, Y, PENALTY, [*chosen, alpha])[-1])
        assert best <= min(errors) + 1e-15
        assert abs(alpha - float(np.argmin(errors)) / 100) <= 0.005 + 1e-9
        chosen.append(alpha)
    assert any(0.05 < alpha < 0.95 for alpha in chosen[1:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ridge(K, Y, 0.0), "penalty is 0.0"),
        (lambda: ridge(K, Y[:5], 1.0), r"\[11, 11\] and targets \[5, 1\]"),
        (lambda: distilled_ridge(K[:5], Y, 1.0, [0.5]), "must be"),
        (lambda: distilled_ridge(K, Y, 1.0, []), "names no step"),
        (lambda: distilled_ridge(K, Y, 1.0, [0.5, 1.5]), "alpha is 1.5"),
        (lambda: distilled_ridge_limit(K, Y, 1.0, -0.1), "alpha is -0.1"),
        (lambda: distilled_ridge_limit(K, Y, -1.0, 0.0), "penalty is -1.0"),
        (lambda: distilled_shrinkage(torch.ones(2), 0.0, [1.0]), "penalty is 0.0"),
    ],
)
def test_wrong_input(call, message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        call()
