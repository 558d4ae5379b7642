"""The max-min game against linear programming, the draws against their probabilities, and the other rules."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from limbeck.errors import LimbeckError
from limbeck.labels.query import dependent_rounding, game_queries, half_random, k_center, largest, maxmin_game

G = torch.tensor([1.0, 0.8, 0.5, 0.25, 0.2], dtype=torch.float64)
GAINS = st.lists(st.floats(0.01, 1), min_size=1, max_size=8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("m", "probabilities", "value"),
    [
        (0, [1, 0, 0, 0, 0], 1.0),
        (1, [0.235294, 0.294118, 0.470588, 0, 0], 0.4705882),
        (2, [0.121212, 0.151515, 0.242424, 0.484848, 0], 0.2424242),
        (3, [0.0754717, 0.0943396, 0.1509434, 0.3018868, 0.3773585], 0.1509434),
    ],
)
def test_known_solutions(m, probabilities, value):
    game = maxmin_game(G, m)
    assert game.probabilities.tolist() == pytest.approx(probabilities, abs=5e-7)
    assert game.value == pytest.approx(value, abs=5e-8)


def test_loss_as_large_as_the_gain_is_twice_the_errors():
    """l = g: v_t = (t - 2 m) / (2 H_t) x 2."""
    game, twice = maxmin_game(G, 1, G), maxmin_game(G, 2)
    torch.testing.assert_close(game.probabilities, twice.probabilities, rtol=1e-14, atol=0)
    assert game.value == pytest.approx(0.2424242, abs=5e-8)
    none = maxmin_game(G, 1, torch.zeros(5, dtype=torch.float64))
    assert torch.equal(none.probabilities, maxmin_game(G, 1).probabilities)


def by_linear_programming(g: np.ndarray, losses: np.ndarray, m: int) -> float:
    """Maximise v over (p, v) with one constraint for every set of m wrong answers."""
    rows = []
    for wrong in itertools.combinations(range(len(g)), m):
        worth = g.copy()
        worth[list(wrong)] = -losses[list(wrong)]
        rows.append([*-worth, 1.0])
    count = len(g)
    found = linprog(
        [0.0] * count + [-1.0],
        A_ub=rows,
        b_ub=[0.0] * len(rows),
        A_eq=[[1.0] * count + [0.0]],
        b_eq=[1.0],
        bounds=[(0, 1)] * count + [(None, None)],
    )
    return float(found.x[-1])


def worst(p: np.ndarray, g: np.ndarray, losses: np.ndarray, m: int) -> float:
    """What p is worth when the m worst answers are wrong."""
    taken = np.sort(p * (g + losses))[::-1][:m].sum()
    return float((p * g).sum() - taken)


@settings(deadline=None, max_examples=60)
@given(GAINS, st.integers(0, 7), st.booleans(), st.integers(0, 99))
def test_against_linear_programming(values, m, costly, seed):
    g = np.array(values)
    m = min(m, len(g) - 1)
    losses = np.random.default_rng(seed).uniform(0, 0.5, len(g)) if costly else np.zeros(len(g))
    game = maxmin_game(torch.tensor(g), m, torch.tensor(losses))
    best = by_linear_programming(g, losses, m)
    if game.value < 0:  # exact where the value is not negative
        assert best < 1e-9
        return
    assert game.value == pytest.approx(best, abs=1e-7)  # the solver's own tolerance
    # And the distribution keeps the promise of its value.
    assert worst(game.probabilities.numpy(), g, losses, m) == pytest.approx(game.value, abs=1e-12)


@settings(deadline=None)
@given(GAINS, st.floats(0, 0.99), st.floats(0.01, 100), st.randoms(use_true_random=False))
def test_properties(values, share, scale, random):
    g = torch.tensor(values, dtype=torch.float64)
    m = share * len(g)
    p, value = maxmin_game(g, m)
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    support = p > 0
    worths = (p * g)[support]
    torch.testing.assert_close(worths, worths[:1].expand_as(worths), rtol=1e-12, atol=0)
    # The support is a prefix of the gains in falling order.
    assert support.all() or g[support].min() >= g[~support].max()
    scaled = maxmin_game(scale * g, m)
    torch.testing.assert_close(scaled.probabilities, p, rtol=1e-9, atol=1e-12)
    assert scaled.value == pytest.approx(scale * value, rel=1e-9)
    order = list(range(len(values)))
    random.shuffle(order)
    if len(set(values)) == len(values):
        torch.testing.assert_close(maxmin_game(g[order], m).probabilities, p[order], rtol=1e-12, atol=0)


@settings(deadline=None)
@given(st.floats(0.01, 1), st.integers(2, 9), st.integers(1, 8))
def test_equal_gains_are_asked_about_equally(gain, count, m):
    m = min(m, count - 1)
    game = maxmin_game(torch.full((count,), gain, dtype=torch.float64), m)
    assert game.probabilities.tolist() == pytest.approx([1 / count] * count)
    assert game.value == pytest.approx(gain * (count - m) / count)
    first = maxmin_game(torch.full((count,), gain, dtype=torch.float64), 0)
    assert first.probabilities.tolist() == [1.0, *[0.0] * (count - 1)]


@settings(deadline=None)
@given(GAINS)
def test_more_errors_are_worth_less_and_spread_the_questions(values):
    games = [maxmin_game(torch.tensor(values, dtype=torch.float64), m) for m in range(len(values))]
    sizes = [int((game.probabilities > 0).sum()) for game in games]
    assert sizes == sorted(sizes)
    assert all(a.value >= b.value - 1e-12 for a, b in itertools.pairwise(games))


def test_games_that_cannot_be_played():
    for m in (-1, 5, 6):
        with pytest.raises(LimbeckError, match=f"m is {m}"):
            maxmin_game(G, m)
    with pytest.raises(LimbeckError, match="positive and finite"):
        maxmin_game(torch.tensor([1.0, 0.0]), 0)
    with pytest.raises(LimbeckError, match="losses must be"):
        maxmin_game(G, 1, -G)


# drawing


@pytest.mark.parametrize("sampling", ["multinomial", "rounding"])
@settings(deadline=None)
@given(GAINS, st.floats(0, 1.2), st.integers(0, 8), st.integers(0, 99))
def test_queries_are_different_points(sampling, values, share, count, seed):
    gains = torch.tensor(values)
    count = min(count, len(gains))
    found = game_queries(gains, share * len(gains), count, sampling=sampling, generator=generator(seed))
    assert len(set(found.tolist())) == len(found) == count
    again = game_queries(gains, share * len(gains), count, sampling=sampling, generator=generator(seed))
    assert torch.equal(found, again)


def test_no_errors_and_nothing_but_errors_take_the_largest_gains():
    gains = torch.rand(50, generator=generator(3)) + 0.1
    expected = gains.argsort(descending=True)[:20].tolist()
    assert game_queries(gains, 0, 20).tolist() == expected
    assert game_queries(gains, 50, 20).tolist() == expected
    # Wrong answers cost more than right ones can bring.
    assert game_queries(gains, 20, 20, 10 * gains).tolist() == expected


def test_what_the_game_leaves_out_comes_from_a_second_game():
    """m = 1 asks about three of five; the fourth comes from the game on the other two, with m = 2/5."""
    second = maxmin_game(G[3:], 0.4).probabilities
    assert second.tolist() == pytest.approx([4 / 9, 5 / 9])
    fourths = []
    for seed in range(1000):
        found = game_queries(G, 1, 4, generator=generator(seed)).tolist()
        assert set(found[:3]) == {0, 1, 2}
        fourths.append(found[3] - 3)
    # Four standard deviations of a share of 1000.
    assert abs(np.mean(fourths) - 5 / 9) < 4 * np.sqrt(20 / 81 / 1000)


def test_first_draws_follow_the_distribution():
    p = maxmin_game(G, 2).probabilities
    draws = torch.cat([game_queries(G, 2, 1, generator=generator(seed)) for seed in range(1500)])
    found = torch.bincount(draws, minlength=5) / 1500
    # Four standard deviations of a share of 1500.
    assert ((found - p).abs() <= 4 * (p * (1 - p) / 1500).sqrt()).all()


@pytest.mark.parametrize("inclusion", [[0.5, 0.5, 0.5, 0.5], [1.0, 0.2, 0.0, 0.8, 0.4], [0.3, 0.25], [1.0, 1.0], [0.7]])
def test_rounding_keeps_the_probabilities_and_the_size(inclusion):
    shares = torch.tensor(inclusion, dtype=torch.float64)
    source = generator(1)
    sets = torch.stack([dependent_rounding(shares, source) for _ in range(1500)]).double()
    # Four standard deviations; exact where a point is in or out for sure.
    assert ((sets.mean(0) - shares).abs() <= 4 * (shares * (1 - shares) / 1500).sqrt() + 1e-12).all()
    total = sum(inclusion)
    assert set(sets.sum(1).tolist()) <= {float(np.floor(total + 1e-9)), float(np.ceil(total - 1e-9))}


def test_rounding_of_nothing_and_of_what_is_no_probability():
    assert dependent_rounding(torch.zeros(0)).tolist() == []
    with pytest.raises(LimbeckError, match="between 0 and 1"):
        dependent_rounding(torch.tensor([1.5]))


# the other rules


def test_largest_and_half():
    gains = torch.tensor([0.2, 0.9, 0.9, 0.1, 0.5, 0.4])
    assert largest(gains, 3).tolist() == [1, 2, 4]
    others: set[int] = set()
    for seed in range(40):
        found = half_random(gains, 3, generator(seed)).tolist()
        assert found[0] == 1
        assert len(set(found)) == 3
        others |= set(found[1:])
    assert others == {0, 2, 3, 4, 5}
    assert sorted(half_random(gains, 6).tolist()) == list(range(6))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 4), st.integers(0, 99))
def test_k_center_against_brute_force(count, known, seed):
    rng = np.random.default_rng(seed)
    points, centers = rng.normal(size=(12, 3)), rng.normal(size=(known, 3))
    found = k_center(torch.tensor(points), torch.tensor(centers), count).tolist()
    expected: list[int] = []
    for _ in range(count):
        there = [*centers, *points[expected]]
        distances = [min((np.linalg.norm(p - c) for c in there), default=np.inf) for p in points]
        free = [at for at in range(12) if at not in expected]
        expected.append(max(free, key=lambda at: distances[at]))
    assert found == expected


def test_k_center_takes_equal_points_once_each():
    assert sorted(k_center(torch.zeros(4, 2), torch.zeros(1, 2), 4).tolist()) == [0, 1, 2, 3]


def test_more_questions_than_points():
    for ask in (
        lambda: game_queries(G, 1, 6),
        lambda: largest(G, 6),
        lambda: half_random(G, 6),
        lambda: k_center(G[:, None], G[:0, None], 6),
    ):
        with pytest.raises(LimbeckError, match="6 points were asked for; there are 5"):
            ask()
