"""Transport that gives similar samples the same cluster."""

import math

import numpy as np
import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.labels.assign.semantic import among, semantic_transport, similar_samples
from limbeck.labels.assign.transport import transport
from tests.labels.assign.problems import costs, objective

OPTIONS = {"gamma": 1.0, "mass": 0.5}


def graph(count, neighbours=4, seed=0):
    features = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return similar_samples(features, neighbours)


def dense(positions, similarities, diagonal=0.0):
    matrix = np.zeros((len(positions), len(positions)))
    for row, (columns, values) in enumerate(zip(positions.tolist(), similarities.tolist(), strict=True)):
        for column, value in zip(columns, values, strict=True):
            matrix[row, column] += value
    return matrix + diagonal * np.eye(len(matrix))


def test_similarities_are_the_largest_entries_of_a_gaussian_kernel():
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions, similarities = similar_samples(features, 3, width=2.0)
    numbers = features.numpy()
    full = np.exp(-((numbers[:, None] - numbers) ** 2).sum(-1) / (2 * 4 * 5))
    np.fill_diagonal(full, 0)
    for row in range(12):
        best = np.argsort(-full[row])[:3]
        assert positions[row].tolist() == best.tolist()
        np.testing.assert_allclose(similarities[row], full[row, best], rtol=1e-9)
    assert similar_samples(features, 50)[0].shape == (12, 11)
    for wrong in ({"neighbours": 0}, {"width": 0.0}):
        with pytest.raises(LimbeckError, match="expected two samples"):
            similar_samples(features, **wrong)


def test_part_of_a_graph():
    positions, similarities = graph(10)
    rows = torch.tensor([7, 2, 2, 5])
    local, values = among(positions, similarities, rows)
    whole, part = dense(positions, similarities), dense(local, values)
    # Of sample 2, which is there twice, the later row is the neighbour.
    expected = whole[rows][:, rows]
    expected[:, 1] = 0
    np.testing.assert_allclose(part, expected)


@pytest.mark.parametrize("case", [{"strength": 0.0}, {"similarities": True}])
def test_without_similarities_it_is_plain_transport(case):
    cost, (positions, similarities) = costs(30, 4), graph(30)
    values = similarities * 0 if "similarities" in case else similarities
    found = semantic_transport(cost, 0.1, positions, values, case.get("strength", 20.0), tolerance=1e-9, **OPTIONS)
    plain = transport(cost, 0.1, tolerance=1e-10, **OPTIONS)
    torch.testing.assert_close(found.transport.plan, plain.plan, atol=1e-7, rtol=1e-4)


def test_first_step_is_transport_of_the_linearised_cost():
    cost, (positions, similarities) = costs(30, 4), graph(30)
    matrix = dense(positions, similarities)
    uniform = np.full((30, 4), 0.5 / 120)
    linear = cost - torch.from_numpy(15.0 * (matrix + matrix.T) @ uniform)
    found = semantic_transport(cost, 0.1, positions, similarities, 15.0, max_steps=1, tolerance=1e-9, **OPTIONS)
    torch.testing.assert_close(found.transport.plan, transport(linear, 0.1, tolerance=1e-10, **OPTIONS).plan)
    # The trace is the whole objective, before and after.
    for value, plan in zip(found.objectives, (uniform, found.transport.plan.numpy()), strict=True):
        expected = objective(plan, cost, 0.1, 1.0, 0.5) - 15.0 * np.sum(matrix * (plan @ plan.T))
        assert float(value) == pytest.approx(expected, rel=1e-9)


def test_fixed_point_is_stationary_and_groups_neighbours():
    # Weak enough to converge; of strong ones see below.
    strength = 3.0
    cost, (positions, similarities) = costs(40, 4, skew=0.0), graph(40)
    found = semantic_transport(cost, 0.1, positions, similarities, strength, tolerance=1e-9, **OPTIONS)
    assert len(found.objectives) < 100
    matrix = dense(positions, similarities)
    plan = found.transport.plan
    linear = cost - torch.from_numpy(strength * (matrix + matrix.T) @ plan.numpy())
    torch.testing.assert_close(transport(linear, 0.1, tolerance=1e-12, **OPTIONS).plan, plan, atol=1e-5, rtol=1e-2)
    plain = transport(cost, 0.1, **OPTIONS).plan
    alike = [float(np.sum(matrix * (q @ q.T).numpy())) for q in (plan, plain)]
    assert alike[0] > 1.05 * alike[1]
    assert float(plan.sum()) == pytest.approx(0.5, abs=1e-6)


def test_objective_can_rise_without_the_shift():
    rises = []
    for seed in range(4):
        cost, (positions, similarities) = costs(24, 4, seed, skew=0.0), graph(24, seed=seed)
        found = semantic_transport(cost, 0.1, positions, similarities, 60.0, max_steps=30, **OPTIONS)
        rises.append(float(found.objectives[1:].diff().amax()))
    assert max(rises) > 1e-3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gamma", [1.0, math.inf])
def test_shifted_similarities_never_raise_the_objective(seed, gamma):
    cost, (positions, similarities) = costs(24, 4, seed, skew=0.0), graph(24, seed=seed)
    strength = 60.0  # strong enough for the unshifted objective to rise, see below
    options = {"gamma": gamma, "mass": 0.5, "tolerance": 1e-8, "max_steps": 30}
    found = semantic_transport(cost, 0.1, positions, similarities, strength, shift=True, **options)
    # From the second value on, as the uniform start need not be feasible for the columns; inner gaps are 1e-9.
    assert float(found.objectives[1:].diff().amax()) <= 1e-7
    matrix = dense(positions, similarities)
    both = matrix + matrix.T
    shifted = both + both.sum(1).max() * np.eye(24)
    assert np.linalg.eigvalsh(shifted).min() >= -1e-9
    plan = found.transport.plan.numpy()
    expected = objective(plan, cost, 0.1, gamma, 0.5) - strength / 2 * np.sum(plan * (shifted @ plan))
    assert float(found.objectives[-1]) == pytest.approx(expected, rel=1e-6)


def test_momentum_and_cap():
    cost, (positions, similarities) = costs(24, 4), graph(24)
    found = semantic_transport(cost, 0.1, positions, similarities, 60.0, momentum=0.5, max_steps=3, **OPTIONS)
    assert len(found.objectives) == 4
    first = semantic_transport(cost, 0.1, positions, similarities, 60.0, max_steps=1, **OPTIONS).transport.plan
    half = semantic_transport(cost, 0.1, positions, similarities, 60.0, max_steps=1, momentum=0.5, **OPTIONS)
    torch.testing.assert_close(half.transport.plan, (first + 0.5 / 96) / 2)
    for wrong in ({"momentum": 0.0}, {"momentum": 1.5}):
        with pytest.raises(LimbeckError, match="momentum"):
            semantic_transport(cost, 0.1, positions, similarities, 1.0, **wrong)
    with pytest.raises(LimbeckError, match="strength is -1"):
        semantic_transport(cost, 0.1, positions, similarities, -1.0)
