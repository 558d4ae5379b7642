import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from limbeck.errors import LimbeckError
from limbeck.metrics.ranking import auc, partial_auc


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from([2, 5, 10**6]))
@settings(max_examples=60, deadline=None)
def test_against_scikit_learn(seed, count, values):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[0, 1, rng.integers(0, 2, size=count - 2)])
    scores = rng.integers(0, values, size=count) / values  # few values: many ties
    given_scores, given_labels = torch.from_numpy(scores), torch.from_numpy(labels)
    assert auc(given_scores, given_labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    for limit in (0.05, 0.3, 1.0):
        expected = roc_auc_score(labels, scores, max_fpr=None if limit == 1.0 else limit)
        assert partial_auc(given_scores, given_labels, limit) == pytest.approx(expected, abs=1e-12)


def test_pairs_by_definition():
    scores, labels = torch.tensor([0.1, 0.4, 0.4, 0.8, -torch.inf]), torch.tensor([0, 0, 1, 1, 0])
    wins = [(a > b) + 0.5 * (a == b) for a in (0.4, 0.8) for b in (0.1, 0.4, -np.inf)]
    assert auc(scores, labels) == pytest.approx(sum(wins) / 6)
    assert auc(scores, labels.bool()) == auc(scores, labels)
    assert auc(-scores, labels) == pytest.approx(1 - auc(scores, labels))


def test_limits():
    labels = torch.tensor([0, 1, 0, 1])
    assert auc(labels.double(), labels) == 1
    assert auc(torch.zeros(4), labels) == 0.5
    assert partial_auc(labels.double(), labels, 0.1) == 1
    assert partial_auc(torch.zeros(4), labels, 0.1) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [1, 1], "2 of 2 samples are positive"),
        ([0.1, 0.2], [0, 0], "0 of 2 samples are positive"),
        ([0.1, 0.2], [0, 2], "are 0 and 1"),
        ([0.1, torch.nan], [0, 1], "sample 1 is NaN"),
    ],
)
def test_refusals(scores, labels, message):
    with pytest.raises(LimbeckError, match=message):
        auc(torch.tensor(scores), torch.tensor(labels))


def test_other_refusals():
    # The hook of the tests sees the shapes first; without it the function does.
    with pytest.raises(LimbeckError, match="max_fpr is 0"):
        partial_auc(torch.rand(2), torch.tensor([0, 1]), 0.0)
