"""Random numbers that are functions of their arguments."""

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.random import derive, permutation, permutations, uniforms

seeds = st.integers(0, 2**63 - 1)


def test_derived_seeds_never_change():
    # Written down once: another value would silently change every split and every order of existing runs.
    assert derive(0) == 5050613703093355895
    assert derive(7, "order", "train", 3) == 9036409357769019083


def test_orders_and_draws_never_change():
    # Written down once, for the same reason.
    assert permutation(5, 8).tolist() == [7, 4, 2, 3, 1, 0, 6, 5]
    drawn = uniforms(7, np.array([0, 3]), np.array([2, -1]), draws=2).ravel()
    written = ["0x1.6409fe2f25980p-5", "0x1.911aa1e471c7ap-1", "0x1.5357647ba6a8bp-1", "0x1.3fca9b177f177p-1"]
    assert [value.hex() for value in drawn.tolist()] == written


def test_derived_seeds_are_the_same_in_another_process():
    code = "from limbeck.data.random import derive; print(derive(5, 'a', 1))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive(5, "a", 1)


@given(seeds, st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=3))
def test_derived_seeds_have_63_bits(seed, parts):
    assert 0 <= derive(seed, *parts) < 2**63


def test_parts_are_kept_apart():
    calls = [
        (0, "ab"),
        (0, "a", "b"),
        (0, 1),
        (0, "1"),
        (0, 1, 1),
        (0, 11),
        (1,),
        (0,),
        (0, "a", 1),
        (0, "a1"),
    ]
    assert len({derive(*call) for call in calls}) == len(calls)


@given(seeds, st.integers(0, 200))
def test_permutation_holds_every_number_once(key, count):
    order = permutation(key, count)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))


@given(st.lists(seeds, min_size=1, max_size=5), st.integers(0, 50))
def test_permutations_made_together_are_those_made_alone(keys, count):
    together = permutations(keys, count)
    assert together.shape == (len(keys), count)
    assert all((order == permutation(key, count)).all() for key, order in zip(keys, together, strict=True))


def test_permutations_of_different_keys_are_unrelated():
    first, second = permutation(1, 10_000), permutation(2, 10_000)
    # The correlation of two random orders has a standard deviation of 0.01; 5 of them.
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert abs(np.corrcoef(first, np.arange(10_000))[0, 1]) < 0.05


def test_numbers_of_any_library_give_the_same_seed():
    assert derive(np.int64(5), np.int32(3)) == derive(5, 3)


@given(seeds, st.integers(1, 20))
def test_uniforms_of_an_element_depend_on_its_own_counters_only(key, count):
    epochs, indices = np.arange(count) % 3, np.arange(count) * 7
    together = uniforms(key, epochs, indices, draws=4)
    alone = [uniforms(key, epochs[[i]], indices[[i]], draws=4)[0] for i in range(count)]
    assert (together == np.stack(alone)).all()
    assert (together[:, :2] == uniforms(key, epochs, indices, draws=2)).all()


def test_uniforms_are_uniform_and_independent():
    draws = uniforms(3, np.repeat(np.arange(100), 1000), np.tile(np.arange(1000), 100), draws=3)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.stack([np.histogram(column, bins=20, range=(0, 1))[0] for column in draws.T])
    # Each bin expects 5000 with a standard deviation of 69; 5 of them.
    assert np.abs(counts - 5000).max() < 345
    # Between draws, between neighbouring indices and between neighbouring epochs: sd 0.0032 each; 5 of them.
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.016
    by_epoch = draws[:, 0].reshape(100, 1000)
    assert abs(np.corrcoef(by_epoch[:, :-1].ravel(), by_epoch[:, 1:].ravel())[0, 1]) < 0.016
    assert abs(np.corrcoef(by_epoch[:-1].ravel(), by_epoch[1:].ravel())[0, 1]) < 0.016


def test_the_order_of_counters_matters():
    a, b = np.array([1]), np.array([2])
    assert (uniforms(0, a, b, draws=1) != uniforms(0, b, a, draws=1)).all()
