import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as reference

from limbeck.errors import LimbeckError
from limbeck.metrics import (
    brier,
    confusion_matrix,
    group_accuracy,
    nll,
    per_class_accuracy,
    summary,
    top_k_accuracy,
)


def samples(n, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=generator)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 60), classes=st.integers(3, 9), seed=st.integers(0, 99))
def test_against_scikit_learn(n, classes, seed):
    logits, labels = samples(n, classes, seed)
    p, every = softmax(logits.numpy(), axis=-1), np.arange(classes)
    assert nll(logits, labels) == pytest.approx(reference.log_loss(labels, p, labels=every), rel=1e-12)
    assert top_k_accuracy(logits, labels) == reference.accuracy_score(labels, p.argmax(-1))
    expected = reference.top_k_accuracy_score(labels, p, k=2, labels=every)
    assert top_k_accuracy(logits, labels, k=2) == pytest.approx(expected, abs=1e-15)
    assert top_k_accuracy(logits, labels, k=classes) == 1.0
    expected = reference.confusion_matrix(labels, p.argmax(-1), labels=every)
    assert confusion_matrix(logits, labels).tolist() == expected.tolist()
    expected = ((p - np.eye(classes)[labels]) ** 2).sum(-1).mean()
    assert brier(logits, labels) == pytest.approx(expected, rel=1e-12)


def test_per_class_accuracy_and_groups():
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 4])
    logits = torch.eye(5)[torch.tensor([0, 1, 1, 1, 2, 0, 0, 4])]
    accuracy = per_class_accuracy(logits, labels)
    np.testing.assert_allclose(accuracy.numpy(), [0.5, 1, 1 / 3, np.nan, 1], rtol=1e-15)
    counts = torch.tensor([101, 100, 20, 19, 500])
    groups = group_accuracy(logits, labels, counts)
    # The only class with few training images has no test images.
    assert groups == pytest.approx({"many": 0.75, "medium": (1 + 1 / 3) / 2}, rel=1e-15)


def test_ties_go_to_the_first_class():
    logits = torch.zeros(4, 4)
    labels = torch.arange(4)
    assert top_k_accuracy(logits, labels) == 0.25
    assert top_k_accuracy(logits[2:], labels[2:], k=2) == 0.0
    assert top_k_accuracy(logits[1:2], labels[1:2], k=2) == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_summary(dtype):
    logits, labels = samples(50, 6)
    logits = logits.to(dtype)
    measured = summary(logits, labels, torch.tensor([200, 150, 50, 30, 10, 5]))
    assert set(measured) == {
        *("accuracy", "top5_accuracy", "nll", "brier", "ece", "adaptive_ece", "aurc", "e_aurc"),
        *("accuracy_many", "accuracy_medium", "accuracy_few"),
    }
    assert measured == summary(logits.double(), labels, torch.tensor([200, 150, 50, 30, 10, 5]))
    assert all(type(value) is float for value in measured.values())
    assert "top5_accuracy" not in summary(logits[:, :5], labels.clamp(max=4))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99))
def test_summary_does_not_depend_on_the_order_of_samples_or_classes(seed):
    logits, labels = samples(40, 7, seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(40, generator=generator), torch.randperm(7, generator=generator)
    changed = summary(logits[rows][:, columns], columns.argsort()[labels[rows]])
    # Sums in another order: float64 rounding.
    assert changed == pytest.approx(summary(logits, labels), abs=1e-13)


def test_extremes_are_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    measured = summary(logits, torch.tensor([0, 0]))
    assert measured["nll"] == 1e4
    assert measured["brier"] == 1.0
    assert measured["accuracy"] == measured["ece"] == 0.5
    single = summary(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
    assert (single["accuracy"], single["nll"], single["ece"], single["e_aurc"]) == (1.0, 0.0, 0.0, 0.0)
    excluded = torch.tensor([[0.0, -torch.inf]])
    assert nll(excluded, torch.tensor([0])) == 0.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 3), [], "no samples"),
        (torch.zeros(2, 3), [0, 3], r"labels\[1\] is 3, must be in \[0, 3\)"),
        (torch.zeros(2, 3), [-1, 0], r"labels\[0\] is -1"),
        (torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]), [0, 0], "1 of 2 samples are NaN or infinite, first row 1"),
        (torch.tensor([[torch.inf, 0.0]]), [0], "infinite"),
        (torch.tensor([[-torch.inf, -torch.inf]]), [0], "infinite"),
    ],
)
def test_what_cannot_be_measured_is_refused(logits, labels, message):
    labels = torch.tensor(labels, dtype=torch.long)
    for metric in (top_k_accuracy, nll, brier, confusion_matrix, summary):
        with pytest.raises(LimbeckError, match=message):
            metric(logits, labels)


def test_k_out_of_range_is_refused():
    with pytest.raises(LimbeckError, match=r"k is 4.*3"):
        top_k_accuracy(torch.zeros(1, 3), torch.tensor([0]), k=4)
