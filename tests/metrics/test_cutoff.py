import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.metrics.cutoff import best_cutoff


def accuracy(scores, labels, cutoff):
    return sum((s >= cutoff) == bool(y) for s, y in zip(scores, labels, strict=True)) / len(labels)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=1, max_size=12))
def test_no_other_cutoff_is_better(pairs):
    scores, labels = [float(score) for score, _ in pairs], [label for _, label in pairs]
    found = best_cutoff(torch.tensor(scores), torch.tensor(labels))
    tried = [-math.inf, math.inf, *(score + 0.5 for score in range(-4, 4))]
    # float32 scores are exact here: small whole numbers.
    assert accuracy(scores, labels, found) == max(accuracy(scores, labels, cutoff) for cutoff in tried)


def test_values():
    assert best_cutoff(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0, 0, 1])) == 2.0
    assert best_cutoff(torch.tensor([1.0, 2.0]), torch.tensor([1, 1])) == -math.inf
    assert best_cutoff(torch.tensor([1.0, 2.0]), torch.tensor([0, 0])) == math.inf


def test_wrong_input():
    with pytest.raises(LimbeckError, match="got 0 for 0"):
        best_cutoff(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(LimbeckError, match="score of sample 1 is NaN"):
        best_cutoff(torch.tensor([0.0, math.nan]), torch.tensor([0, 1]))
