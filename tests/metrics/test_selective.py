from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.metrics import aurc, e_aurc


def made(confidences, correct):
    """Logits of two classes with these confidences, and labels that make each right or wrong."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p, 1 - p], -1).log(), 1 - torch.tensor(correct)


def risks(correct):
    wrong = 1 - np.asarray(correct)
    return (np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean()


@settings(max_examples=30, deadline=None)
@given(correct=st.lists(st.integers(0, 1), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_against_the_definition(correct, seed):
    rng = np.random.default_rng(seed)
    confidences = np.sort(rng.uniform(0.55, 0.99, len(correct)))[::-1]
    shuffle = rng.permutation(len(correct))
    logits, labels = made(confidences[shuffle].tolist(), np.array(correct)[shuffle].tolist())
    assert aurc(logits, labels) == pytest.approx(risks(correct), abs=1e-14)
    expected = risks(correct) - risks(sorted(correct, reverse=True))
    assert e_aurc(logits, labels) == pytest.approx(expected, abs=1e-14)
    assert e_aurc(logits, labels) >= 0


def test_ties_are_the_expectation_over_their_orders():
    correct, confidences = [1, 0, 1, 1, 0], [0.9, 0.8, 0.8, 0.8, 0.6]
    logits, labels = made(confidences, correct)
    expected = np.mean([risks([1, *middle, 0]) for middle in permutations([0, 1, 1])])
    assert aurc(logits, labels) == pytest.approx(expected, abs=1e-15)


def test_perfect_ranking_has_no_excess():
    logits, labels = made([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0])
    assert e_aurc(logits, labels) == 0.0
    assert aurc(logits, labels) == pytest.approx((1 / 3 + 2 / 4) / 4, abs=1e-15)
    right, labels = made([0.9, 0.6], [1, 1])
    assert aurc(right, labels) == 0.0
    assert aurc(right, 1 - labels) == 1.0
    assert e_aurc(right, 1 - labels) == 0.0


def test_confidences_beyond_float32_still_rank():
    # 1 - 1e-9 and 1 - 1e-10 are both 1 in float32.
    logits = torch.tensor([[20.7, 0.0], [23.0, 0.0]])
    assert aurc(logits, torch.tensor([1, 0])) == 0.25
    assert aurc(logits, torch.tensor([0, 1])) == 0.75
