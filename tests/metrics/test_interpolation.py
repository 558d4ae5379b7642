import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.errors import LimbeckError
from limbeck.metrics.interpolation import ALPHAS, BETAS, search_interpolation

LOGITS = arrays(np.float32, (12, 3), elements=st.floats(-4, 4, width=16))


def accuracy(first: np.ndarray, second: np.ndarray, labels: np.ndarray, alpha: float, beta: float) -> float:
    def softmax(x: np.ndarray) -> np.ndarray:
        powers = np.exp(x.astype(np.float64))
        return powers / powers.sum(-1, keepdims=True)

    mixed = alpha * softmax(first) + (1 - alpha) * softmax(second / beta)
    return float((mixed.argmax(-1) == labels).mean())


def test_grid() -> None:
    """As the released few-shot code has it."""
    assert len(ALPHAS) == 21
    assert ALPHAS[:3] == (0.0, 0.05, 0.1)
    assert ALPHAS[-1] == 1.0
    assert BETAS == (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)


@settings(max_examples=20, deadline=None)
@given(LOGITS, LOGITS, arrays(np.int64, 12, elements=st.integers(0, 2)))
def test_at_least_as_good_as_either_head(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> None:
    chosen = search_interpolation(*map(torch.from_numpy, (first, second, labels)))
    alone = [float((logits.argmax(-1) == labels).mean()) for logits in (first, second)]
    # Of two equally probable classes float32 and the softmax may take either: one sample of twelve.
    tied = any((np.sort(z, -1)[:, -1] - np.sort(z, -1)[:, -2] < 1e-3).any() for z in (first, second))
    assert tied or chosen.accuracy >= max(alone)
    assert chosen.alpha in ALPHAS
    assert chosen.beta in BETAS


def test_brute_force() -> None:
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 4, 40)
    first, second = (draws.normal(size=(40, 4)) + np.eye(4)[labels] for _ in range(2))
    tried = [(accuracy(first, second, labels, a, b), -b, -a) for a, b in itertools.product(ALPHAS, BETAS)]
    best, beta, alpha = max(tried)
    chosen = search_interpolation(*map(torch.from_numpy, (first, second, labels)))
    assert chosen == (-alpha, -beta, best)
    assert best > max((first.argmax(-1) == labels).mean(), (second.argmax(-1) == labels).mean())


def test_ties_go_to_the_smaller_beta_then_alpha() -> None:
    """All pairs are right."""
    logits = 20 * torch.eye(3)
    assert search_interpolation(logits, logits, torch.arange(3)) == (0.0, 0.5, 1.0)
    # Only the first head is right: the smallest weight with which it prevails.
    assert search_interpolation(logits, -logits, torch.arange(3))[:2] == (0.35, 0.5)


@pytest.mark.parametrize("labels", [[], [0, -1, 2]])
def test_needs_labels(labels: list[int]) -> None:
    logits = torch.eye(3)[: len(labels)]
    with pytest.raises(LimbeckError, match="all need a label"):
        search_interpolation(logits, logits, torch.tensor(labels, dtype=torch.int64))


def test_needs_a_grid() -> None:
    with pytest.raises(LimbeckError, match="no beta"):
        search_interpolation(torch.eye(3), torch.eye(3), torch.arange(3), betas=())
