import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.labels import Labels, TopK, one_hot, to_dense, top_k


def probabilities(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


@settings(deadline=None)
@given(shape=st.sampled_from([(1,), (5,), (2, 3), (0, 4), (2, 3, 6)]), k=st.integers(1, 6), seed=st.integers(0, 99))
def test_top_k_and_back(shape, k, seed):
    p, k = probabilities(*shape, seed=seed), min(k, shape[-1])
    kept = top_k(p, k)
    dense = to_dense(kept, shape[-1])
    mass = kept.log_probs.exp().sum(-1) + kept.rest
    torch.testing.assert_close(mass, torch.ones(shape[:-1], dtype=torch.float64))
    torch.testing.assert_close(dense.sum(-1), mass)
    torch.testing.assert_close(dense.gather(-1, kept.indices), p.sort(descending=True).values[..., :k])
    if k == shape[-1]:
        torch.testing.assert_close(dense, p)


def test_rest_is_exact_where_one_minus_the_sum_is_not():
    kept = top_k(torch.tensor([1.0, 1e-12, 1e-12]), 1)
    assert kept.rest.item() == pytest.approx(2e-12, rel=1e-6)  # float32 rounding; 1 - 1 would be 0
    assert to_dense(kept, 3).tolist() == pytest.approx([1.0, 1e-12, 1e-12], rel=1e-6)


def test_top_k_by_hand():
    kept = top_k(torch.tensor([[0.1, 0.5, 0.3, 0.1]]), 2)
    assert kept.indices.tolist() == [[1, 2]]
    torch.testing.assert_close(to_dense(kept, 4), torch.tensor([[0.1, 0.5, 0.3, 0.1]]))
    with pytest.raises(LimbeckError, match=r"k is 5.*4"):
        top_k(torch.ones(2, 4), 5)
    with pytest.raises(LimbeckError, match="keep 2 classes"):
        to_dense(kept, 1)


@given(classes=st.integers(1, 9), shape=st.sampled_from([(), (0,), (4,), (2, 3)]))
def test_one_hot_against_torch(classes, shape):
    labels = torch.randint(classes, shape, generator=torch.Generator().manual_seed(classes))
    assert torch.equal(one_hot(labels, classes), F.one_hot(labels, classes).float())


def test_one_hot_of_the_unknown_is_zero_and_out_of_range_is_refused():
    assert one_hot(torch.tensor([1, -1]), 2, torch.float64).tolist() == [[0.0, 1.0], [0.0, 0.0]]
    with pytest.raises(RuntimeError, match="out of bounds"):
        one_hot(torch.tensor([2]), 2)


def test_kinds_give_probabilities_and_predictions():
    p = probabilities(4, 3)
    index = p.argmax(-1)
    for target in (p, index, top_k(p, 3), top_k(p, 1)):
        labels = Labels(target)
        assert labels.batch_shape == (4,)
        assert labels.weights.tolist() == [1.0] * 4
        assert torch.equal(labels.predicted(), index)
        assert labels.probabilities(3).shape == (4, 3)
        assert labels.check(3) is labels
    assert Labels(p).probabilities(3) is p
    assert Labels(torch.randn(4, 3), weight=torch.ones(4, 3)).batch_shape == (4, 3)
    with pytest.raises(LimbeckError, match="of 3 classes, not of 5"):
        Labels(p).probabilities(5)
    for values in (Labels(torch.randn(4)), Labels(torch.randn(4, 3), torch.ones(4, 3))):
        with pytest.raises(LimbeckError, match="real values"):
            values.probabilities(3)
        with pytest.raises(LimbeckError, match="real values"):
            values.predicted()


def test_weighted_multiplies_and_leaves_the_original_alone():
    labels = Labels(torch.tensor([0, 1, 2]), torch.tensor([1.0, 0.5, 0.0]))
    assert labels.weighted(torch.tensor([True, True, True])).weights.tolist() == [1.0, 0.5, 0.0]
    assert labels.weighted(torch.tensor([0.5, 2.0, 1.0])).weights.tolist() == [0.5, 1.0, 0.0]
    assert labels.weights.tolist() == [1.0, 0.5, 0.0]
    classes = torch.tensor([True, False, True])
    kept = Labels(torch.tensor([0, 2]), classes=classes).weighted(torch.tensor([0.5, 1.0]))
    assert kept.classes is classes
    with pytest.raises(LimbeckError, match=r"\[2\].*\[3\]"):
        labels.weighted(torch.ones(2))


def test_to_moves_every_part():
    p = probabilities(2, 3)
    for target in (p, top_k(p, 2)):
        moved = Labels(target, torch.ones(2), torch.ones(2, 3, dtype=torch.bool)).to("meta")
        parts = moved.target if isinstance(moved.target, TopK) else [moved.target]
        assert isinstance(moved.target, type(target))
        assert {part.device.type for part in (*parts, moved.weight, moved.classes)} == {"meta"}
    assert Labels(p).to("cpu").weight is None


P = torch.full((2, 3), 1 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, dtype=torch.int32),), "not torch.int32"),
        ((P, torch.ones(3)), r"weight has shape \[3\], the target wants \[2\] or \[2, 3\]"),
        ((P, torch.ones(2, dtype=torch.bool)), "weight must be floating point"),
        ((torch.tensor([0, 1]), torch.ones(3)), r"wants \[2\]"),
        ((P, None, torch.ones(3)), "must be bool"),
        ((P, None, torch.ones(4, 3, dtype=torch.bool)), r"mask over classes has shape \[4, 3\]"),
        ((TopK(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2)),), "indices must be int64"),
        ((TopK(torch.zeros(2, 1).long(), torch.zeros(2, 1).long(), torch.zeros(2)),), "must be floating point"),
        ((TopK(torch.zeros(2, 1).long(), torch.zeros(2, 1), torch.zeros(3)),), r"\[2, 1\] and \[3\]"),
    ],
)
def test_shapes_and_types_are_refused(arguments, message):
    with pytest.raises(LimbeckError, match=message):
        Labels(*arguments)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Labels(P, torch.tensor([1.0, -1.0])), r"labels\[1\]: weight is negative"),
        (Labels(P, torch.tensor([torch.nan, 1.0])), r"labels\[0\]: weight"),
        (Labels(torch.tensor([0, 3])), r"labels\[1\]: label outside \[0, 3\): 3"),
        (Labels(torch.tensor([0, -1])), r"labels\[1\]: label outside"),
        (Labels(2 * P), r"labels\[0\]: probabilities do not sum to 1 but to: 2"),
        (Labels(torch.tensor([[1.5, -0.5, 0.0]])), r"labels\[0, 1\]: probability is negative"),
        (Labels(P * torch.nan), "NaN"),
        (Labels(TopK(torch.tensor([[3]]), torch.zeros(1, 1), torch.zeros(1))), "index outside"),
        (Labels(TopK(torch.tensor([[0]]), torch.zeros(1, 1), torch.ones(1))), "sum to 1 but to: 2"),
    ],
)
def test_numbers_are_refused_by_check(labels, message):
    with pytest.raises(LimbeckError, match=message):
        labels.check(3)


def test_what_is_not_used_may_be_anything():
    out = torch.zeros(2)
    assert Labels(torch.tensor([-1, -1]), out).check(3).weight is out
    assert Labels(P * torch.nan, out).check(3).weight is out
