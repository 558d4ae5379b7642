import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.metrics.similarity import auc, headline, is_binary, pearson, spearman, summary

FEW = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12)


def tensors(pairs):
    one, other = zip(*pairs, strict=True)
    return torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)


def ranks(values):
    """By counting: those below, and half of the ties."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())


@given(FEW)
def test_against_the_definitions(pairs):
    scores, gold = tensors(pairs)
    x, y = scores.numpy(), gold.numpy()
    if len(set(y)) == 1:
        with pytest.raises(LimbeckError, match=r"all .* gold scores are"):
            spearman(scores, gold)
        return
    if len(set(x)) == 1:
        assert spearman(scores, gold) == pearson(scores, gold) == 0
        return
    assert spearman(scores, gold) == pytest.approx(correlation(ranks(x), ranks(y)), abs=1e-13)
    assert pearson(scores, gold) == pytest.approx(correlation(x, y), abs=1e-13)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=12))
def test_auc_by_counting_pairs(pairs):
    scores, gold = tensors(pairs)
    high, low = scores[gold == 1].numpy(), scores[gold == 0].numpy()
    if not (len(high) and len(low)):
        with pytest.raises(LimbeckError, match="gold scores are"):
            auc(scores, gold)
        return
    wins = (high[:, None] > low) + 0.5 * (high[:, None] == low)
    assert auc(scores, gold) == pytest.approx(wins.mean(), abs=1e-13)


def test_monotone_maps_keep_spearman_and_linear_maps_pearson():
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gold = scores + torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert spearman(scores.exp(), gold) == spearman(scores, gold)
    assert spearman(-scores, gold) == pytest.approx(-spearman(scores, gold), abs=1e-14)
    assert pearson(3 * scores - 7, gold) == pytest.approx(pearson(scores, gold), abs=1e-13)
    assert abs(pearson(scores.exp(), gold) - pearson(scores, gold)) > 0.01


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_pearson_of_tiny_and_huge_numbers(scale):
    scores, gold = tensors([(1, 2), (2, 1), (3, 5), (4, 4)])
    assert pearson(scale * scores, gold / scale) == pytest.approx(pearson(scores, gold), abs=1e-13)


def test_summary_has_the_auc_of_binary_gold_scores_only_and_it_is_the_headline():
    scores, gold = tensors([(1, 0), (2, 1), (3, 0), (4, 1)])
    found = summary(scores, gold)
    assert found["auc"] == headline(found) == 0.75
    found = summary(scores, gold * 2)
    assert set(found) == {"spearman", "pearson"}
    assert headline(found) == found["spearman"]
    assert not is_binary(gold * 2)


def test_wrong_input():
    scores, gold = tensors([(1, 0), (2, 1), (3, 2)])
    with pytest.raises(LimbeckError, match="3 predicted and 2 gold"):
        spearman(scores, gold[:2])
    with pytest.raises(LimbeckError, match="at least two pairs, got 1"):
        pearson(scores[:1], gold[:1])
    with pytest.raises(LimbeckError, match=r"1 of 3 predicted scores are NaN or infinite, first row 1"):
        spearman(torch.tensor([1.0, float("nan"), 2.0]), gold.float())
    with pytest.raises(LimbeckError, match="1 of 3 gold scores"):
        spearman(scores.float(), torch.tensor([1.0, float("inf"), 2.0]))
    with pytest.raises(LimbeckError, match="use spearman"):
        auc(scores, gold)
