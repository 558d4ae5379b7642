import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.labels import nearest_labelled
from limbeck.labels.nearest_labelled import class_similarity, nearest_class


def features(count: int, seed: int, size: int = 4) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 9), anchors=st.integers(3, 12), size=st.integers(1, 5), seed=st.integers(0, 99))
def test_similarity_and_labels_by_brute_force(count: int, anchors: int, size: int, seed: int) -> None:
    z, x = features(count, seed, size), features(anchors, seed + 1, size)
    classes = torch.arange(anchors) % 3
    s = class_similarity(z, x, classes, 3)
    expected = [
        [max(float(u @ v / u.norm() / v.norm()) for v, c in zip(x, classes, strict=True) if c == k) for k in range(3)]
        for u in z
    ]
    np.testing.assert_allclose(s.numpy(), np.array(expected).reshape(-1, 3), atol=1e-12)
    labels = nearest_class(s)
    for row, target, weight in zip(expected, labels.target, labels.weights, strict=True):
        first, second = sorted(row, reverse=True)[:2]
        assert row[int(target)] == pytest.approx(first, abs=1e-12)
        assert float(weight) == pytest.approx(first - second, abs=1e-12)
        assert float(weight) == pytest.approx(first * (1 - second / first), abs=1e-9)  # as it is written
        assert 0 <= float(weight) <= 2


def test_examples_of_the_weight() -> None:
    labels = nearest_class(torch.tensor([[0.9, 0.6, 0.1], [0.4, 0.4, 0.1], [-0.9, -0.2, -0.5], [1.0, -1.0, -1.0]]))
    assert labels.target.tolist()[0] == 0  # type: ignore[union-attr]
    np.testing.assert_allclose(labels.weights.numpy(), [0.3, 0.0, 0.3, 2.0], atol=1e-6)
    assert labels.target.tolist()[2] == 1  # type: ignore[union-attr]


def test_an_anchor_itself_and_the_length_of_vectors() -> None:
    x = features(6, 0)
    classes = torch.tensor([0, 1, 2, 0, 1, 2])
    s = class_similarity(x, x, classes, 3)
    np.testing.assert_allclose(s[torch.arange(6), classes].numpy(), 1, atol=1e-12)
    scaled = class_similarity(x * torch.tensor([[1e-8], [3.0], [1.0], [1e6], [5.0], [2.0]]), 7 * x, classes, 3)
    torch.testing.assert_close(scaled, s, rtol=0, atol=1e-12)
    assert float(s.max()) <= 1
    assert float(class_similarity(torch.zeros(1, 4, dtype=torch.float64), x, classes, 3).abs().max()) == 0


def test_more_anchors_only_raise_it(monkeypatch: pytest.MonkeyPatch) -> None:
    z, x = features(20, 0), features(30, 1)
    classes = torch.arange(30) % 3
    few = class_similarity(z, x[:9], classes[:9], 3)
    more = class_similarity(z, x, classes, 3)
    assert bool((more >= few - 1e-12).all())  # products of other sizes round differently
    assert bool((more > few + 0.01).any())
    monkeypatch.setattr(nearest_labelled, "PAIRS", 70)  # two rows at a time
    torch.testing.assert_close(class_similarity(z, x, classes, 3), more, rtol=0, atol=1e-12)


def test_errors() -> None:
    with pytest.raises(LimbeckError, match=r"the classes number \[1, 3\] \(from 0\) have no labelled sample"):
        class_similarity(features(2, 0), features(2, 1), torch.tensor([0, 2]), 4)
    with pytest.raises(LimbeckError, match="at least two"):
        nearest_class(torch.ones(3, 1))
