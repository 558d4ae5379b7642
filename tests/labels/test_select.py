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
    confidence_share,
    confident,
    entropy,
    entropy_below,
    entropy_percentile,
    most_confident,
    most_confident_per_class,
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


@settings(deadline=None)
@given(n=st.integers(1, 40), percent=st.sampled_from([0, 12.5, 50, 80, 99, 100]), seed=st.integers(0, 99))
def test_entropy_percentile_against_numpy(n, percent, seed):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(n, 4, generator=generator, dtype=torch.float64).softmax(-1)
    weight = torch.randint(2, (n,), generator=generator).double()
    kept = entropy_percentile(Labels(p, weight), percent).weights.numpy()
    values, used = entropy(Labels(p)).numpy(), weight.numpy() > 0
    limit = np.percentile(values[used], percent) if used.any() else 0.0
    # Interpolation rounds: what lies on the threshold itself may fall on either side unless it is a value.
    sure = np.abs(values - limit) > 1e-12
    np.testing.assert_array_equal(kept[sure], (used & (values <= limit))[sure])
    if percent == 100:
        assert kept.tolist() == weight.tolist()


def test_entropy_percentile_of_other_entropies():
    hard = Labels(torch.tensor([[0, 1], [2, 0]]), torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
    # Of 0.1, 0.4 and 0.7 (0.2 is not in use) the median is 0.4.
    kept = entropy_percentile(hard, 50, torch.tensor([[0.1, 0.4], [0.2, 0.7]]))
    assert kept.weights.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert kept.target is hard.target
    with pytest.raises(LimbeckError, match="percent is 101"):
        entropy_percentile(hard, 101)
    with pytest.raises(LimbeckError, match=r"entropies have shape \[2\]"):
        entropy_percentile(hard, 80, torch.zeros(2))


def test_confidence_share_is_one_number_for_all():
    labels = confidence_share(Labels(P, USED), 0.7)
    # 0.7, 0.4 and 0.9 are in use, two of them reach 0.7.
    torch.testing.assert_close(labels.weights, USED * 2 / 3)
    assert labels.target is P
    assert confidence_share(Labels(P), 1.1).weights.tolist() == [0.0] * 4
    assert confidence_share(Labels(P, torch.zeros(4)), 0.0).weights.tolist() == [0.0] * 4
    assert confidence_share(Labels(P), 0.0).weights.tolist() == [1.0] * 4


def test_most_confident_per_class_of_the_published_case():
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    assert most_confident_per_class(Labels(scores), 2).weights.tolist() == [1.0, 1.0, 0.0, 1.0]
    assert most_confident_per_class(Labels(scores), 4).weights.tolist() == [1.0] * 4
    assert most_confident_per_class(Labels(top_k(scores, 1)), 1).weights.tolist() == [1.0, 0.0, 0.0, 1.0]
    with pytest.raises(LimbeckError, match="k is 0, must be at least 1"):
        most_confident_per_class(Labels(scores), 0)


@settings(deadline=None)
@given(n=st.integers(0, 14), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_most_confident_per_class_against_sorting_each_class(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    p = (torch.randint(1, 5, (n, 3), generator=generator).float() * 8).softmax(-1)  # with ties
    weight = torch.randint(3, (n,), generator=generator).float()
    kept = most_confident_per_class(Labels(p, weight), k).weights
    expected = np.zeros(n)
    for label in range(3):
        rows = [row for row in range(n) if int(p[row].argmax()) == label and weight[row] > 0]
        for row in sorted(rows, key=lambda row: -float(p[row].max()))[:k]:  # sorted is stable
            expected[row] = weight[row]
    assert kept.tolist() == expected.tolist()
    assert int((kept > 0).sum()) <= 3 * k


def test_most_confident_per_class_keeps_shape_and_target():
    labels = Labels(torch.full((2, 3, 4), 0.25))
    kept = most_confident_per_class(labels, 4)
    assert kept.weights.tolist() == [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    assert kept.target is labels.target
