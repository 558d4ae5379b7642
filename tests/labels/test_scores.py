"""How hard and how informative samples are."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.errors import LimbeckError
from limbeck.labels.scores import el2n, forgetting_score, forgetting_step, informativeness, prototype_distance

LOGITS = arrays(np.float64, (5, 4), elements=st.floats(-1e4, 1e4))


def test_el2n_of_known_errors():
    p = torch.tensor([[0.7, 0.2, 0.1]] * 2, dtype=torch.float64)
    found = el2n(p, torch.tensor([0, 2]))
    # sqrt(.09 + .04 + .01) and sqrt(.49 + .04 + .81), in float64.
    assert found.tolist() == pytest.approx([0.3741657387, 1.1575836903], abs=1e-10)


@settings(deadline=None)
@given(LOGITS, st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_el2n_lies_between_0_and_root_2(logits, labels):
    p = torch.tensor(logits).softmax(-1)
    found = el2n(p, torch.tensor(labels))
    expected = np.linalg.norm(p.numpy() - np.eye(4)[labels], axis=-1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-15)
    assert ((found >= 0) & (found <= math.sqrt(2) + 1e-15)).all()


def test_el2n_at_its_limits():
    sure = torch.eye(3)
    assert el2n(sure, torch.tensor([0, 1, 2])).tolist() == [0.0] * 3
    assert el2n(sure, torch.tensor([1, 2, 0])).tolist() == pytest.approx([math.sqrt(2)] * 3)


def forgetting(sequence: list[bool]) -> float:
    past = torch.zeros(3)
    for right in sequence:
        past = forgetting_step(past, torch.tensor(right))
    return float(forgetting_score(past))


def test_forgetting_of_a_known_sequence():
    assert forgetting([bool(right) for right in (0, 1, 1, 0, 1, 0, 0)]) == 2
    assert forgetting([False] * 5) == math.inf
    assert forgetting([]) == math.inf
    assert forgetting([True] * 5) == 0
    assert forgetting([True]) == 0


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=12))
def test_forgetting_against_counting_pairs(looks):
    past = torch.zeros(3, 3)
    for look in looks:
        past = forgetting_step(past, torch.tensor(look))
    for sample, found in enumerate(forgetting_score(past).tolist()):
        column = [look[sample] for look in looks]
        events = sum(before and not after for before, after in itertools.pairwise(column))
        assert found == (events if any(column) else math.inf)


def test_prototypes_against_the_nearest_of_known_directions():
    """Three tight bundles: their means are the prototypes, and the one that stands off is the farthest."""
    generator = np.random.default_rng(0)
    centres = np.repeat(np.eye(3), 20, axis=0)
    points = centres + 0.01 * generator.normal(size=(60, 3))
    points[7] = [1.0, 0.6, 0.0]
    points *= generator.uniform(0.5, 5, size=(60, 1))  # lengths do not count
    found = prototype_distance(torch.tensor(points), 3, seed=1)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    means = np.stack([unit[start : start + 20].mean(0) for start in (0, 20, 40)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), 1 - (unit @ means.T).max(1), atol=1e-12)
    assert found.argmax() == 7
    assert torch.equal(found, prototype_distance(torch.tensor(points), 3, seed=1))


def test_every_sample_its_own_prototype_and_twins():
    points = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert prototype_distance(points, 6, seed=0).max() < 1e-6  # float32 of exact zeros in float64
    twins = points[[0, 0, 1, 1, 0]]
    assert prototype_distance(twins, 4, seed=0).max() < 1e-6
    for clusters in (0, 7):
        with pytest.raises(LimbeckError, match=f"clusters is {clusters}"):
            prototype_distance(points, clusters, seed=0)


def test_informativeness_of_known_predictions():
    p = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [1 / 3] * 3], dtype=torch.float64)
    assert informativeness(p).tolist() == pytest.approx([0.8, 1e-6, 1.0])
    assert informativeness(p, "least_confidence").tolist() == pytest.approx([0.5, 1e-6, 2 / 3])
    entropy = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2)) / math.log(3)
    assert informativeness(p, "entropy").tolist() == pytest.approx([entropy, 1e-6, 1.0])
    assert informativeness(p, floor=0.9).tolist() == pytest.approx([0.9, 0.9, 1.0])


@pytest.mark.parametrize("by", ["margin", "entropy", "least_confidence"])
@settings(deadline=None)
@given(logits=LOGITS)
def test_informativeness_is_positive_and_knows_no_order_of_classes(by, logits):
    p = torch.tensor(logits).softmax(-1)
    found = informativeness(p, by)
    assert ((found >= 1e-6) & (found <= 1 + 1e-12)).all()
    # A sum in another order.
    torch.testing.assert_close(informativeness(p.flip(-1), by), found, rtol=0, atol=1e-14)


def test_informativeness_that_cannot_be():
    with pytest.raises(LimbeckError, match="Did you mean 'margin'"):
        informativeness(torch.ones(2, 3) / 3, "margins")
    with pytest.raises(LimbeckError, match="less than two classes"):
        informativeness(torch.ones(2, 1))
