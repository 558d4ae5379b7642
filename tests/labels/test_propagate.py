import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.labels.propagate import Counts, Field, count_pairs, join, propagate, smoothness

EXACT = {"iterations": 200, "tolerance": 1e-12}


def log_weight(y, field, counts=None):
    """The unnormalised log-probability of y, by the definition."""
    total = float(field.unary.numpy() @ y)
    total += sum(float(c) * y[i] * y[j] for (i, j), c in zip(field.edges.tolist(), field.coupling, strict=True))
    if counts is not None:
        for members, count in zip(counts.members.tolist(), counts.counts.tolist(), strict=True):
            total -= counts.strength * (sum(y[m] for m in members if m >= 0) - count) ** 2
    return total


def brute_force(field, counts=None):
    """Marginals from all 2^N states."""
    states = np.array(list(itertools.product([0, 1], repeat=len(field.unary))))
    logs = np.array([log_weight(y, field, counts) for y in states])
    weights = np.exp(logs - logs.max())
    return weights @ states / weights.sum()


def field(unary, edges=(), coupling=()):
    pairs = torch.tensor(list(edges), dtype=torch.int64).reshape(-1, 2)
    return Field(torch.tensor(unary, dtype=torch.float64), pairs, torch.tensor(coupling, dtype=torch.float64))


def bags(members, counts, strength):
    return Counts(torch.tensor(members), torch.tensor(counts), strength)


def only_counts(nodes, members, counts, strength, factor):
    """The same model as a dense graph, or as cardinality factors."""
    empty = field([0.0] * nodes)
    if factor == "pairs":
        return join(empty, count_pairs(nodes, torch.tensor(members), torch.tensor(counts), strength)), None
    return empty, bags(members, counts, strength)


@pytest.mark.parametrize("factor", ["pairs", "cardinality"])
def test_bag_of_two_by_hand(factor):
    def marginals(count, strength):
        found = propagate(*only_counts(2, [[0, 1]], [count], strength, factor), **EXACT)
        assert found.converged
        return found.probabilities.tolist()

    # exp(-l) + exp(-4 l) over 1 + 2 exp(-l) + exp(-4 l).
    assert marginals(0, 1.0) == pytest.approx([0.386195 / 1.754074] * 2, abs=1e-6)
    for strength in (0.3, 1.0, 10.0):
        one, four = math.exp(-strength), math.exp(-4 * strength)
        expected = (one + four) / (1 + 2 * one + four)
        assert marginals(0, strength) == pytest.approx([expected] * 2, rel=1e-10)
        assert marginals(1, strength) == pytest.approx([0.5, 0.5], abs=1e-12)
        assert marginals(2, strength) == pytest.approx([1 - expected] * 2, rel=1e-10)


@pytest.mark.parametrize("factor", ["pairs", "cardinality"])
def test_bag_of_one(factor):
    for strength, count in itertools.product((0.5, 3.0), (0, 1)):
        found = propagate(*only_counts(1, [[0]], [count], strength, factor), **EXACT)
        assert found.log_odds.item() == pytest.approx(strength * (2 * count - 1), rel=1e-12)


def test_two_singletons_and_an_edge():
    """Bags {0} with one positive and {1} with none, kappa = 1: four states by hand."""
    edges, strength = torch.tensor([[0, 1]]), 0.7
    alike = smoothness(2, edges, torch.ones(1), strength)
    model = join(alike, count_pairs(2, torch.tensor([[0], [1]]), torch.tensor([1, 0]), 2.0))
    # -2 (y0 - 1)^2 - 2 y1^2 - 0.7 (y0 - y1)^2
    e00, e10, e01, e11 = -2.0, -0.7, -4.7, -2.0
    expected = math.log(math.exp(e10) + math.exp(e11)) - math.log(math.exp(e00) + math.exp(e01))
    found = propagate(model, **EXACT)
    assert found.log_odds.tolist() == pytest.approx([expected, -expected], abs=1e-6)


def test_terms_are_the_quadratic_forms():
    rng = np.random.default_rng(0)
    edges = torch.tensor([[0, 1], [4, 1], [2, 3], [3, 5], [0, 2]])
    kappa, members, counts = torch.rand(5, dtype=torch.float64), [[0, 1, 2], [3, 4, 5]], [1, 2]
    model = join(smoothness(6, edges, kappa, 1.7), count_pairs(6, torch.tensor(members), torch.tensor(counts), 0.6))
    constant = -0.6 * sum(count**2 for count in counts)
    for y in rng.integers(0, 2, size=(20, 6)):
        quadratic = -1.7 * sum(float(k) * (y[i] - y[j]) ** 2 for (i, j), k in zip(edges.tolist(), kappa, strict=True))
        quadratic -= 0.6 * sum((y[m].sum() - count) ** 2 for m, count in zip(members, counts, strict=True))
        assert log_weight(y, model) + constant == pytest.approx(quadratic, abs=1e-12)


def test_couplings_of_one_pair_are_added_up():
    one = field([1.0, 2.0, 0.0], [(0, 1), (1, 2)], [0.5, -1.0])
    other = field([0.5, 0.0, 0.0], [(1, 0)], [2.0])
    both = join(one, other)
    assert both.edges.tolist() == [[0, 1], [1, 2]]
    assert both.coupling.tolist() == [2.5, -1.0]
    assert both.unary.tolist() == [1.5, 2.0, 0.0]


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_exact_on_trees(seed, nodes):
    rng = np.random.default_rng(seed)
    edges = [(int(rng.integers(child)), child) for child in range(1, nodes)]
    model = field(rng.normal(size=nodes) * 3, edges, rng.normal(size=nodes - 1) * 4)
    found = propagate(model, damping=float(rng.choice([0.0, 0.5])), **EXACT)
    assert found.converged
    np.testing.assert_allclose(found.probabilities, brute_force(model), atol=1e-10)


def test_exact_on_a_tree_of_bags_and_edges():
    """Three bags joined by two edges: a tree of factors, of which one bag has an empty place."""
    rng = np.random.default_rng(3)
    model = field(rng.normal(size=8), [(0, 3), (4, 6)], [2.5, -1.5])
    counts = bags([[0, 1, 2], [3, 4, 5], [6, -1, 7]], [1, 3, 0], 1.3)
    found = propagate(model, counts, **EXACT)
    assert found.converged
    np.testing.assert_allclose(found.probabilities, brute_force(model, counts), atol=1e-10)


def test_close_on_a_cycle_of_weak_couplings():
    model = field([0.3, -0.2, 0.5], [(0, 1), (1, 2), (0, 2)], [0.4, 0.4, 0.4])
    found = propagate(model, **EXACT)
    exact = brute_force(model)
    np.testing.assert_allclose(found.probabilities, exact, atol=0.01)
    assert np.abs(found.probabilities.numpy() - exact).max() > 1e-5  # loopy: not exact


@pytest.mark.parametrize("factor", ["pairs", "cardinality"])
def test_without_neighbours_a_bag_has_equal_marginals(factor):
    members = [[0, 1, 2], [3, 4, 5]]
    found = propagate(*only_counts(6, members, [1, 3], 0.4, factor), **EXACT).probabilities
    assert found[:3].tolist() == pytest.approx([float(found[0])] * 3, abs=1e-9)
    assert found[3:].tolist() == pytest.approx([float(found[3])] * 3, abs=1e-9)
    assert found[3] > found[0]
    if factor == "cardinality":  # a tree
        np.testing.assert_allclose(found, brute_force(field([0.0] * 6), bags(members, [1, 3], 0.4)), atol=1e-10)


def test_neighbours_alone_say_nothing():
    edges = torch.tensor([[0, 1], [1, 2], [2, 3], [0, 3]])
    found = propagate(smoothness(4, edges, torch.rand(4), 2.0), **EXACT)
    assert found.probabilities.tolist() == pytest.approx([0.5] * 4, abs=1e-9)


@pytest.mark.parametrize("factor", ["pairs", "cardinality"])
def test_exchanging_the_classes_mirrors_the_marginals(factor):
    edges, kappa = torch.tensor([[0, 3], [1, 4], [2, 3], [1, 5]]), torch.tensor([0.9, 0.5, 0.2, 0.7])
    found = []
    for counts in ([1, 2], [2, 1]):
        model, factors = only_counts(6, [[0, 1, 2], [3, 4, 5]], counts, 0.3, factor)
        found.append(propagate(join(model, smoothness(6, edges, kappa, 0.5)), factors, **EXACT))
    assert all(one.converged for one in found)
    np.testing.assert_allclose(found[0].probabilities, 1 - found[1].probabilities, atol=1e-9)


def test_strong_dense_couplings_swing_and_say_so():
    """Bags of four with three neighbours each at lambda = 10: the card's example does not settle; one factor does."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.tensor([(i, j) for i in range(24) for j in torch.randperm(24, generator=generator)[:3] if i < int(j)])
    kappa = torch.rand(len(edges), generator=generator)
    members, counts = torch.arange(24).view(6, 4), torch.tensor([1, 2, 3, 1, 2, 0])
    settled = {}
    for strength in (0.3, 10.0):
        alike = smoothness(24, edges, kappa, strength)
        dense = propagate(join(alike, count_pairs(24, members, counts, strength)))
        settled[strength] = (dense.converged, dense.iterations)
        assert (dense.change <= 1e-6) == dense.converged
    assert settled[0.3][0]
    assert settled[0.3][1] < 100
    assert settled[10.0] == (False, 100)


def test_damping_does_not_move_the_fixed_point():
    model = field([0.3, -0.2, 0.5], [(0, 1), (1, 2), (0, 2)], [0.9, -0.4, 0.7])
    found = [propagate(model, damping=d, **EXACT).log_odds for d in (0.0, 0.5, 0.9)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-10)
    np.testing.assert_allclose(found[0], found[2], atol=1e-9)


def test_one_iteration_by_hand():
    """Messages from zero, half of each new one."""
    model = field([0.4, -1.0], [(0, 1)], [2.0])
    found = propagate(model, iterations=1)
    message = math.log1p(math.exp(2.4)) - math.log1p(math.exp(0.4))
    other = math.log1p(math.exp(1.0)) - math.log1p(math.exp(-1.0))
    assert found.log_odds.tolist() == pytest.approx([0.4 + other / 2, -1.0 + message / 2], abs=1e-12)
    assert found.change == pytest.approx(max(message, other), abs=1e-12)
    assert (found.iterations, found.converged) == (1, False)


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_extreme_numbers_stay_finite(scale):
    rng = np.random.default_rng(0)
    model = field(scale * rng.normal(size=6), [(0, 1), (1, 2), (3, 4), (0, 5)], scale * rng.normal(size=4))
    found = propagate(model, bags([[0, 1, 2], [3, 4, 5]], [1, 2], 1e-3 * scale))
    assert found.log_odds.isfinite().all()


@pytest.mark.parametrize("strength", [10.0, math.inf])
def test_counts_that_are_certain(strength):
    counts = bags([[0, 1, 2], [3, 4, 5]], [0, 3], strength)
    found = propagate(field([5.0, -1.0, 2.0, -4.0, 0.0, 1.0]), counts, **EXACT).probabilities
    assert (found[:3] < 0.01).all()
    assert (found[3:] > 0.99).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations is 0"),
        ({"damping": 1.0}, r"damping 1\.0"),
        ({"tolerance": -1.0}, "tolerance -1"),
        ({"counts": bags([[0, 2]], [1], 1.0)}, "positions up to 2 of 2"),
        ({"counts": bags([[0, 1]], [3], 1.0)}, "2 variables and a count of 3"),
        ({"counts": bags([[0, -1]], [2], 1.0)}, "1 variables and a count of 2"),
        ({"counts": bags([[0, 1]], [1], -1.0)}, r"strength is -1\.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(LimbeckError, match=message):
        propagate(field([0.0, 0.0]), **options)


def test_models_that_are_none():
    with pytest.raises(LimbeckError, match="same variables"):
        join(field([0.0]), field([0.0, 0.0]))
    with pytest.raises(LimbeckError, match="with itself"):
        join(field([0.0, 0.0], [(1, 1)], [1.0]))
    with pytest.raises(LimbeckError, match="from 0 to 2 of 2"):
        join(field([0.0, 0.0], [(0, 2)], [1.0]))
