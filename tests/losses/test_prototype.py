import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.losses.prototype import prototype_cross_entropy

LOGITS = arrays(np.float64, (5, 3), elements=st.floats(-3, 3))


@given(LOGITS, st.lists(st.integers(0, 2), min_size=5, max_size=5), st.floats(0.1, 2))
def test_one_sample_and_one_class_after_the_other(z, labels, T):
    q = np.exp(z / T - (z / T).max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    expected = []
    for row, label in zip(q, labels, strict=True):
        scores = []
        for c in range(3):
            own = [q[i] for i in range(5) if labels[i] == c]
            mean = np.mean(own, axis=0) if own else np.zeros(3)
            scores.append(-((row - mean) ** 2).sum())
        expected.append(math.log(sum(math.exp(s) for s in scores)) - scores[label])
    found = prototype_cross_entropy(torch.tensor(z), torch.tensor(labels), temperature=T, reduction="none")
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 10])
def test_one_hot_and_right(classes):
    logits, labels = 1e3 * torch.eye(classes), torch.arange(classes)
    expected = math.log(1 + (classes - 1) * math.exp(-2))
    assert prototype_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-6)


def test_identical_predictions():
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    # Two classes are there and have the score 0, the third -|q|^2.
    expected = math.log(2 + math.exp(-0.38))
    assert prototype_cross_entropy(q.log().expand(4, -1), labels, temperature=1).item() == pytest.approx(expected)


def test_gradient_and_extremes():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 1, 0])
    assert torch.autograd.gradcheck(lambda z: prototype_cross_entropy(z, labels), logits)
    far = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], dtype=torch.bfloat16, requires_grad=True)
    loss = prototype_cross_entropy(far, torch.tensor([1, 1]))
    loss.backward()
    assert loss.isfinite()
    assert far.grad.isfinite().all()
