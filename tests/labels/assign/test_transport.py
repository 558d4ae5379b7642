"""Entropic transport, against POT, scipy and plain scaling iterations."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from limbeck.errors import LimbeckError
from limbeck.labels.assign.transport import transport
from tests.labels.assign.problems import costs, objective, scaled

CASES = [(math.inf, 1.0), (1.0, 1.0), (0.05, 1.0), (0.0, 1.0), (math.inf, 0.4), (1.0, 0.4), (1.0, 0.05), (0.0, 0.3)]


@pytest.mark.parametrize(("gamma", "mass"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_plan_is_that_of_the_scaling_iterations(gamma, mass, dtype):
    cost = costs(60, 7, dtype=dtype)
    # The plan's error is the square root of the gap's order: 1e-12 here is about 1e-6 of a row. float32 has 24 bits.
    close = 1e-12 if dtype == torch.float64 else 1e-7
    found = transport(cost, 0.1, gamma=gamma, mass=mass, tolerance=close)
    expected = scaled(cost, 0.1, gamma, mass)
    np.testing.assert_allclose(found.plan * 60, expected * 60, atol=2e-5 if dtype == torch.float64 else 2e-3)
    assert found.gap.dtype == found.plan.dtype == dtype
    assert 0 <= found.gap <= close
    assert found.violation <= close


@pytest.mark.parametrize(("gamma", "mass"), CASES)
def test_gap_bounds_the_distance_from_the_optimum(gamma, mass):
    cost = costs(40, 5, seed=1)
    best = objective(scaled(cost, 0.1, gamma, mass), cost, 0.1, gamma, mass)
    highest = float(transport(cost, 0.1, gamma=gamma, mass=mass, tolerance=1e-9).potential.abs().amax())
    gaps = []
    for iterations in (1, 5, 9, 200):
        found = transport(cost, 0.1, gamma=gamma, mass=mass, max_iterations=iterations, tolerance=1e-13)
        value = objective(found.plan, cost, 0.1, gamma, mass)
        if 0 <= gamma < math.inf and mass == 1:
            # No prescribed columns: the plan is feasible, and the gap an upper bound (1e-12 for rounding).
            assert -1e-12 <= value - best <= float(found.gap) + 1e-12
        else:
            # Prescribed columns are missed by the violation, at a price between the potentials here and at the optimum.
            price = max(highest, float(found.potential.abs().amax())) * float(found.violation)
            assert abs(value - best) <= float(found.gap) + price + 1e-12
        gaps.append(float(found.gap + found.violation))
    assert gaps[-1] < 1e-12
    if gamma > 0 or mass < 1:
        assert gaps[0] > 1e-6, "there was something to do"


def test_generic_convex_solver_agrees():
    # 4x2, with the virtual column as slack: variables Q and r, sum_k Q + r = 1/4, sum r = 0.4.
    cost = costs(4, 2, seed=3)
    epsilon, gamma, mass = 0.3, 0.7, 0.6

    def value(x):
        q, r = x[:8].reshape(4, 2), x[8:]
        columns, target = q.sum(0), mass / 2
        entropy = sum(np.sum(part * np.log(part) - part) for part in (q, r))
        divergence = np.sum(columns * np.log(columns / target) - columns + target)
        return np.sum(q * cost.numpy()) + epsilon * entropy + gamma * divergence

    rows = np.vstack([np.hstack([np.kron(np.eye(4), np.ones((1, 2))), np.eye(4)]), np.r_[np.zeros(8), np.ones(4)]])
    sums = np.array([0.25, 0.25, 0.25, 0.25, 0.4])
    solved = minimize(
        value,
        np.r_[np.full(8, 0.075), np.full(4, 0.1)],
        method="SLSQP",
        bounds=[(1e-9, 1)] * 12,
        constraints={"type": "eq", "fun": lambda x: rows @ x - sums, "jac": lambda x: rows},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    found = transport(cost, epsilon, gamma=gamma, mass=mass, tolerance=1e-12)
    # The generic solver takes gradients by differences.
    np.testing.assert_allclose(found.plan, solved.x[:8].reshape(4, 2), atol=1e-5)
    assert objective(found.plan, cost, epsilon, gamma, mass) == pytest.approx(solved.fun, abs=1e-9)


@pytest.mark.parametrize("gamma", [math.inf, 1.0, 0.1])
def test_pot_agrees(gamma):
    ot = pytest.importorskip("ot")
    cost = costs(50, 6, seed=2)
    a = np.random.default_rng(0).dirichlet(np.full(50, 5.0))
    b = np.random.default_rng(1).dirichlet(np.full(6, 5.0))
    options = {"numItermax": 100_000, "stopThr": 1e-13}
    if math.isinf(gamma):
        expected = ot.bregman.sinkhorn(a, b, cost.numpy(), 0.2, **options)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that with the entropy its reference measure is not used
            expected = ot.unbalanced.sinkhorn_unbalanced(
                a, b, cost.numpy(), 0.2, (math.inf, gamma), reg_type="entropy", **options
            )
    found = transport(cost, 0.2, gamma=gamma, rows=torch.from_numpy(a), columns=torch.from_numpy(b), tolerance=1e-13)
    np.testing.assert_allclose(found.plan, expected, atol=1e-7)


def test_one_divergence_a_column():
    cost = costs(30, 4, seed=5)
    gamma = torch.tensor([math.inf, 0.0, 1.0, 0.1], dtype=torch.float64)
    b = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    found = transport(cost, 0.1, gamma=gamma, mass=0.8, columns=b, tolerance=1e-12)
    expected = scaled(cost, 0.1, gamma.numpy(), 0.8, b=b.numpy())
    np.testing.assert_allclose(found.plan, expected, atol=1e-7)
    assert float(found.plan[:, 0].sum()) == pytest.approx(0.1, abs=1e-10)


@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 8),
    gamma=st.sampled_from([math.inf, 2.0, 0.1, 0.0]),
    mass=st.sampled_from([1.0, 0.7, 0.1]),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_marginals(rows, columns, gamma, mass, scale, dtype, seed):
    cost = costs(rows, columns, seed, scale, dtype=dtype)
    found = transport(cost, 0.1, gamma=gamma, mass=mass, max_iterations=300)
    sums = found.plan.sum(1)
    rounding = 50 * torch.finfo(dtype).eps
    assert bool((found.plan >= 0).all())
    assert bool(found.plan.isfinite().all())
    assert bool((sums <= (1 + rounding) / rows).all())
    if mass == 1:
        assert torch.allclose(sums, torch.full_like(sums, 1 / rows), rtol=rounding)
    assert float(found.plan.sum()) == pytest.approx(mass, abs=float(found.violation) + rounding)
    if math.isinf(gamma):
        target = torch.full((columns,), mass / columns, dtype=dtype)
        assert float((found.plan.sum(0) - target).abs().sum()) <= float(found.violation) * (1 + 1e-3) + rounding


def test_free_columns_are_a_softmax():
    cost = costs(20, 5)
    found = transport(cost, 0.5, gamma=0.0)
    torch.testing.assert_close(found.plan * 20, (-cost / 0.5).softmax(-1))
    # The P2OT card: with a virtual column the rows' masses are s / (s + v), one v for all.
    part = transport(cost, 0.5, gamma=0.0, mass=0.3, tolerance=1e-13).plan * 20
    s = (-cost / 0.5).exp().sum(-1)
    mass = part.sum(-1)
    v = s / mass - s
    torch.testing.assert_close(v, v[:1].expand(20), rtol=1e-6, atol=0)
    assert bool((mass[s.argsort()].diff() >= 0).all()), "confident rows first"
    torch.testing.assert_close(part / mass[:, None], (-cost / 0.5).softmax(-1))


def test_uniform_predictions_give_a_uniform_plan():
    cost = torch.full((12, 4), math.log(4), dtype=torch.float64)
    for gamma, mass in CASES:
        plan = transport(cost, 0.1, gamma=gamma, mass=mass, tolerance=1e-12).plan
        torch.testing.assert_close(plan, torch.full_like(plan, mass / 48), rtol=1e-6, atol=0)


def test_equal_rows_and_permuted_columns():
    cost = costs(10, 4)
    cost[3] = cost[7]
    found = transport(cost, 0.1, gamma=1.0, mass=0.5)
    torch.testing.assert_close(found.plan[3], found.plan[7], rtol=1e-12, atol=0)
    order = torch.tensor([2, 0, 3, 1])
    other = transport(cost[:, order], 0.1, gamma=1.0, mass=0.5)
    torch.testing.assert_close(other.plan, found.plan[:, order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("gamma", "mass"), [(1.0, 1.0), (1.0, 0.3), (math.inf, 1.0), (math.inf, 0.3)])
def test_cost_of_ten_thousand_epsilon(gamma, mass, dtype):
    cost = torch.from_numpy(np.random.default_rng(0).random((200, 6))).to(dtype)
    cost = cost / cost.max()
    found = transport(cost, 1e-4, gamma=gamma, mass=mass, tolerance=1e-4, max_iterations=2000)
    assert found.gap + found.violation < 2e-4
    assert bool(found.plan.isfinite().all())
    # Nearly a linear program, whose solutions split no more rows than there are columns.
    shares = found.plan * 200
    assert int(((shares > 0.05) & (shares < 0.95)).any(-1).sum()) <= 7
    assert int((shares > 0.95).sum()) >= 200 * mass - 14


def test_a_column_that_is_far_from_everything():
    cost = costs(100, 5)
    cost[:, 2] += 3000
    for dtype in (torch.float64, torch.float32):
        found = transport(cost.to(dtype), 0.1, tolerance=1e-5)
        assert found.violation < 1e-5
        assert float(found.plan[:, 2].sum()) == pytest.approx(0.2, abs=1e-5)


def test_a_batch_is_its_problems():
    problems = torch.stack([costs(20, 4, seed) for seed in range(6)]).view(2, 3, 20, 4)
    found = transport(problems, 0.1, gamma=1.0, mass=0.5, tolerance=1e-12)
    assert found.gap.shape == found.violation.shape == (2, 3)
    assert found.potential.shape == (2, 3, 5)
    for at in np.ndindex(2, 3):
        alone = transport(problems[at], 0.1, gamma=1.0, mass=0.5, tolerance=1e-12)
        torch.testing.assert_close(found.plan[at], alone.plan, rtol=1e-6, atol=1e-10)


def test_warm_start():
    cost = costs(200, 8)
    cold = transport(cost, 0.1, gamma=1.0, mass=0.2, tolerance=1e-10)
    warm = transport(cost, 0.1, gamma=1.0, mass=0.2, tolerance=1e-10, start=cold.potential)
    assert warm.iterations == 1 < cold.iterations
    # Where it starts decides nothing but the time: the plans agree as far as the gap says.
    torch.testing.assert_close(warm.plan, cold.plan, rtol=1e-4, atol=1e-9)
    near = transport(
        cost + 0.01 * costs(200, 8, seed=9), 0.1, gamma=1.0, mass=0.2, start=cold.potential, tolerance=1e-10
    )
    assert near.iterations < cold.iterations


def test_acceleration_needs_far_fewer_passes():
    cost = costs(300, 10)
    found = transport(cost, 0.1, gamma=1.0, mass=0.1, tolerance=1e-8)
    plain = scaled(cost, 0.1, 1.0, 0.1, iterations=5 * found.iterations)
    # Even then the prescribed mass of the virtual column is missed by more.
    assert abs(plain.sum() - 0.1) > 10 * found.violation
    assert found.violation <= 1e-8


def test_rows_of_weight_zero_are_not_there():
    cost = costs(20, 4)
    a = torch.full((20,), 1 / 15, dtype=torch.float64)
    a[5:10] = 0
    found = transport(cost, 0.1, gamma=1.0, mass=0.5, rows=a, tolerance=1e-12)
    kept = a > 0
    alone = transport(cost[kept], 0.1, gamma=1.0, mass=0.5, tolerance=1e-12)
    assert float(found.plan[~kept].abs().sum()) == 0
    torch.testing.assert_close(found.plan[kept], alone.plan, rtol=1e-6, atol=1e-10)


def test_half_precision_is_computed_in_float32():
    cost = costs(20, 4)
    found = transport(cost.bfloat16(), 0.1, gamma=1.0)
    assert found.plan.dtype == torch.float32
    torch.testing.assert_close(found.plan, transport(cost.bfloat16().float(), 0.1, gamma=1.0).plan)


def test_blocks_of_rows_change_nothing(monkeypatch):
    cost = costs(50, 4)
    whole = transport(cost, 0.1, gamma=1.0, mass=0.5, tolerance=1e-12)
    monkeypatch.setattr("limbeck.labels.assign.scaling.CACHED", 7 * 5 * 8)  # 7 rows
    parts = transport(cost, 0.1, gamma=1.0, mass=0.5, tolerance=1e-12)
    torch.testing.assert_close(parts.plan, whole.plan, rtol=1e-7, atol=1e-12)


def test_iterations_have_no_graph_break():
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"mass": 0.0}, "mass 0.0"),
        ({"mass": 1.5}, "mass 1.5"),
        ({"gamma": -1.0}, "gamma must be >= 0"),
        ({"rows": torch.tensor([-0.5, 1.5])}, "must be >= 0"),
        ({"columns": torch.tensor([0.5, 0.0, 0.5])}, "columns > 0"),
        ({"columns": torch.tensor([0.5, 0.5, 0.5])}, "total 1.5, but the mass of the rows is 1:"),
        ({"start": torch.zeros(2)}, "start has 2 potentials, expected 3"),
        ({"cost": torch.tensor([[0.0, 1.0, torch.inf]])}, "NaN or infinite"),
        ({"cost": torch.tensor([[0.0, 1.0, torch.nan]])}, "NaN or infinite"),
        ({"cost": torch.zeros(0, 3)}, "at least one row"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    arguments = {"cost": torch.zeros(2, 3), "epsilon": 0.1, **changes}
    with pytest.raises(LimbeckError, match=message):
        transport(**arguments)
