import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from limbeck.errors import LimbeckError
from limbeck.labels import (
    Labels,
    agreement,
    confidence,
    confident,
    entropy,
    entropy_below,
    most_confident,
    top_k,
)

P = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.05, 0.05, 0.9], [1.0, 0.0, 0.0]])
USED = torch.tensor([1.0, 2.0, 0.5, 0.0])


@pytest.mark.parametrize("target", [P, top_k(P, 2)])
def test_confident_keeps_at_or_above_the_threshold(target):
    labels = Labels(target, USED)
    # The logarithm of a top k costs one rounding: thresholds stand off the values.
    assert confident(labels, 0.699).weights.tolist() == [1.0, 0.0, 0.5, 0.0]
    assert confident(labels, torch.tensor([0.8, 0.3, 0.8, 0.0])).weights.tolist() == [0.0, 2.0, 0.5, 0.0]
    assert confident(labels, 0).weights.tolist() == USED.tolist()
    assert confident(labels, 1.1).weights.tolist() == [0.0] * 4
    assert confident(labels, 0.5).target is labels.target


def test_threshold_is_inclusive():
    assert confident(Labels(torch.tensor([[0.5, 0.5], [0.25, 0.75]])), 0.75).weights.tolist() == [0.0, 1.0]


@settings(deadline=None)
@given(n=st.integers(0, 12), fraction=st.floats(0, 1), seed=st.integers(0, 99))
def test_most_confident_against_sorting(n, fraction, seed):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(n, 3, generator=generator).softmax(-1)
    weight = torch.randint(2, (n,), generator=generator).float()
    kept = most_confident(Labels(p, weight), fraction).weights.numpy()
    used = np.flatnonzero(weight.numpy())
    number = round(fraction * len(used))
    expected = used[np.argsort(-p.amax(-1).numpy()[used], kind="stable")[:number]]
    assert np.flatnonzero(kept).tolist() == sorted(expected.tolist())


def test_most_confident_keeps_shape_and_breaks_ties_by_position():
    p = torch.full((2, 3, 4), 0.25)
    assert most_confident(Labels(p), 0.5).weights.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    with pytest.raises(LimbeckError, match="fraction is 2"):
        most_confident(Labels(p), 2)


def test_entropy_against_scipy():
    np.testing.assert_allclose(entropy(Labels(P)).numpy(), scipy_entropy(P.double().numpy(), axis=-1), rtol=1e-6)
    torch.testing.assert_close(entropy(Labels(top_k(P, 3))), entropy(Labels(P)))
    coarse = entropy(Labels(top_k(P, 1)))
    assert (coarse <= entropy(Labels(P)) + 1e-6).all()
    # Binary entropies of what is kept and what is not.
    np.testing.assert_allclose(coarse[0].item(), scipy_entropy([0.7, 0.3]), rtol=1e-6)
    assert entropy_below(Labels(P, USED), 0.9).weights.tolist() == [1.0, 0.0, 0.5, 0.0]


def test_agreement_multiplies_both_weights():
    first = Labels(torch.tensor([0, 1, 2, 0]), USED)
    second = Labels(P, torch.tensor([1.0, 1.0, 0.5, 1.0]))
    kept = agreement(first, second)
    assert kept.weights.tolist() == [1.0, 0.0, 0.25, 0.0]
    assert kept.target is first.target
    with pytest.raises(LimbeckError, match=r"\[4\] and the others \[3\]"):
        agreement(first, Labels(P[:3]))


@pytest.mark.parametrize("labels", [Labels(torch.tensor([0, 1])), Labels(torch.tensor([0.1, 0.2]))])
def test_labels_without_probabilities_are_refused(labels):
    with pytest.raises(LimbeckError, match="confidence needs class probabilities"):
        confidence(labels)
    with pytest.raises(LimbeckError, match="entropy needs class probabilities"):
        entropy_below(labels, 1.0)
