"""Which samples train, validate and stay unlabelled."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data import Samples, Source, Split
from limbeck.data.splits import balanced, hold_out, split
from limbeck.errors import LimbeckError


def make(counts, classes=None):
    labels = torch.cat([torch.full((count,), number) for number, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    names = tuple(classes or (f"class {number}" for number in range(len(counts))))
    return Samples(torch.rand(len(labels), 1, 2, 2), labels, names)


def source(*counts, validation=None):
    return Source(make(counts), make([3] * len(counts)), validation)


def counts(samples, hidden=False):
    labels = samples.hidden_labels if hidden else samples.labels
    return torch.bincount(labels, minlength=len(samples.classes)).tolist()


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    validation=st.one_of(st.floats(0.01, 0.9), st.integers(1, 60)),
    seed=st.integers(0, 2**62),
)
def test_validation_is_stratified_and_disjoint(sizes, validation, seed):
    total = sum(sizes)
    wanted = validation if validation >= 1 else round(validation * total)
    if not 0 < wanted < total:
        with pytest.raises(LimbeckError, match=r"validation"):
            split(source(*sizes), Split(validation=validation), seed)
        return
    data = split(source(*sizes), Split(validation=validation), seed)
    train, held = set(data.train.indices.tolist()), set(data.validation.indices.tolist())
    assert len(held) == wanted
    assert train | held == set(range(total))
    assert not train & held
    for got, size in zip(counts(data.validation), sizes, strict=True):
        assert abs(got - wanted * size / total) < 1
    assert data.train.num_samples == total


def test_splits_are_functions_of_the_seed():
    whole = source(40, 40)
    how = Split(train_size=50, labels_per_class=5, label_noise=0.2)

    def described(how, seed):
        data = split(whole, how, seed)
        return [
            tensor.tolist()
            for part in (data.train, data.validation, data.unlabeled)
            for tensor in (part.indices, part.labels)
        ]

    first = described(how, 3)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert described(how, 3) == first
    assert described(how, 4) != first
    fixed = Split(train_size=50, labels_per_class=5, label_noise=0.2, split_seed=3)
    assert described(fixed, 4) == first


def test_a_source_keeps_its_own_validation_data():
    own = make([5, 5])
    data = split(source(20, 20, validation=own), Split(validation=0.5), 0)
    assert data.validation is own
    assert counts(data.train) == [20, 20]


def test_train_size_keeps_the_proportions():
    data = split(source(100, 50, 10, validation=make([2, 2, 2])), Split(train_size=32), 0)
    assert counts(data.train) == [20, 10, 2]


def test_long_tail_is_exponential():
    data = split(source(100, 100, 100, validation=make([1, 1, 1])), Split(imbalance=100), 0)
    assert counts(data.train) == [100, 10, 1]


def test_long_tail_of_an_unbalanced_source_keeps_the_ratio():
    # The first class has only 60: the whole tail follows it down.
    data = split(source(60, 100, 100, validation=make([1, 1, 1])), Split(imbalance=4), 0)
    assert counts(data.train) == [60, 30, 15]


def test_long_tail_by_the_rank():
    data = split(source(100, 100, 100, 100, validation=make([1] * 4)), Split(imbalance=4, tail="pareto"), 0)
    assert counts(data.train) == [100, 50, 33, 25]
    assert set(data.train.indices.tolist()) <= set(range(400))


def test_few_labels_leave_the_rest_unlabelled():
    data = split(source(30, 20, validation=make([2, 2])), Split(labels_per_class=4), 0)
    assert counts(data.train) == [4, 4]
    assert data.train.hidden_labels is None
    assert set(data.unlabeled.labels.tolist()) == {-1}
    assert counts(data.unlabeled, hidden=True) == [26, 16]
    assert sorted(data.train.indices.tolist() + data.unlabeled.indices.tolist()) == list(range(50))


def test_the_order_of_the_steps():
    how = Split(validation=20, train_size=80, imbalance=4, labels_per_class=3, label_noise=0.5)
    data = split(source(50, 50), how, 0)
    assert counts(data.validation) == [10, 10]
    assert counts(data.train.relabel(data.train.hidden_labels)) == [3, 3]  # of 40 and 10
    assert counts(data.unlabeled, hidden=True) == [37, 7]
    assert int((data.train.labels != data.train.hidden_labels).sum()) == 3
    assert data.validation.hidden_labels is None


def test_noise_is_symmetric_and_exact():
    whole = source(1000, 1000, 1000, 1000, validation=make([1] * 4))
    data = split(whole, Split(label_noise=0.3), 5)
    truth = whole.train.labels
    assert torch.equal(data.train.hidden_labels, truth)
    assert int((data.train.labels != truth).sum()) == 1200
    moved = torch.zeros(4, 4, dtype=torch.int64)
    moved.index_put_((truth, data.train.labels), torch.ones_like(truth), accumulate=True)
    # Each of the 12 wrong pairs expects 100 with a standard deviation of about 9.6; 5 of them.
    wrong = moved[~torch.eye(4, dtype=torch.bool)]
    assert (wrong - 100).abs().max() < 48


def test_split_carries_view_and_flip():
    data = split(source(10, 10), Split(view="strong"), 0)
    assert (data.view, data.flip, data.classes) == ("strong", True, ("class 0", "class 1"))
    assert data.unlabeled is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels_per_class": 8}, "labels_per_class is 8, but class 'class 1' has 7 training samples"),
        ({"train_size": 100}, "train_size is 100, but there are 27"),
        ({"validation": 30}, "takes 30 of 30"),
        ({"validation": 0.01}, "would be empty: 0.01 of 30"),
        ({"imbalance": 100}, "no sample of class 'class 1'.*\\[20, 0\\]"),
    ],
)
def test_empty_selections_are_refused_with_counts(options, message):
    with pytest.raises(LimbeckError, match=message):
        split(source(22, 8), Split(**options), 0)


def test_labelling_everything_is_refused():
    with pytest.raises(LimbeckError, match="labels all 8 samples"):
        split(source(4, 4, validation=make([1, 1])), Split(labels_per_class=4), 0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train_size", 0),
        ("labels_per_class", 0),
        ("imbalance", 0.5),
        ("tail", "zipf"),
        ("label_noise", 1.0),
        ("label_noise", -0.1),
        ("validation", 0),
        ("validation", -0.1),
        ("validation", 1.5),
        ("view", "weka"),
    ],
)
def test_values_out_of_range_are_refused(option, value):
    with pytest.raises(LimbeckError, match="Did you mean 'weak'" if option == "view" else f"{option} is '?{value}"):
        Split(**{option: value})


def test_hold_out_is_fixed_and_stratified():
    whole = make([40, 20])
    train, test = hold_out(whole, 0.25)
    assert counts(test) == [10, 5]
    assert sorted(train.indices.tolist() + test.indices.tolist()) == list(range(60))
    assert torch.equal(hold_out(whole, 0.25)[1].indices, test.indices)
    with pytest.raises(LimbeckError, match="too few"):
        hold_out(make([1]), 0.25)


def test_a_source_refuses_missing_labels():
    train = make([4, 4])
    labels = train.labels.clone()
    labels[3] = -1
    with pytest.raises(LimbeckError, match="the test data has no label at index 3"):
        Source(train, Samples(train.images, labels, train.classes))


def test_a_source_refuses_parts_that_do_not_match():
    train = make([4, 4])
    with pytest.raises(LimbeckError, match="test data has classes \\['a', 'b'\\]"):
        Source(train, make([2, 2], ["a", "b"]))
    wide = Samples(torch.rand(4, 1, 2, 3), torch.zeros(4), train.classes)
    with pytest.raises(LimbeckError, match="validation images are \\[1, 2, 3\\], the training images \\[1, 2, 2\\]"):
        Source(train, train, wide)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 9))
def test_balanced_samples_are_as_even_as_the_classes_allow(sizes, count, seed):
    whole = make(sizes)
    part = balanced(whole, count, seed)
    assert len(part) == min(count, sum(sizes))
    found = counts(part)
    # A class that has fewer than another, but for the last round, has no more to give.
    assert all(few >= max(found) - 1 or few == size for few, size in zip(found, sizes, strict=True))
    assert torch.equal(part.labels, whole.labels[part.indices])
    assert torch.equal(balanced(whole, count, seed).indices, part.indices)


def test_balanced_leaves_out_what_has_no_label():
    whole = make([10, 10])
    labels = whole.labels.where(torch.arange(20) >= 15, -1)
    few = Samples(whole.images, labels, whole.classes)
    assert sorted(balanced(few, 8, 0).indices.tolist()) == list(range(15, 20))
    assert not torch.equal(balanced(whole, 8, 0).indices, balanced(whole, 8, 1).indices)
    with pytest.raises(LimbeckError, match="no samples"):
        balanced(whole.unlabel(), 8, 0)
