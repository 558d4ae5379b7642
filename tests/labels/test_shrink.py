import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.labels import Labels, shrink_classes, top_k
from limbeck.losses import cross_entropy

EXAMPLE = torch.tensor([[0.5, 0.45, 0.03, 0.02]])


def probabilities(*shape, seed=0, scale=1.0):
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (scale * logits).softmax(-1)


def by_loop(p, threshold):
    """One sample after the other, as the released code searches."""
    order = np.argsort(-p, kind="stable")
    s = p[order]
    for c in range(2, len(p)):
        if s[0] / (s[0] + s[c:].sum()) >= threshold:
            kept = {order[0], *order[c:]}
            return order[0], [k in kept for k in range(len(p))], 1.0
    return order[0], [True] * len(p), 0.0


@pytest.mark.parametrize(
    ("threshold", "kept", "weight"),
    [
        (0.9, [True, False, True, True], 1.0),  # 0.5 / 0.55 = 0.909
        (0.95, [True, False, False, True], 1.0),  # 0.5 / 0.52 = 0.9615
        (0.97, [True] * 4, 0.0),
    ],
)
def test_worked_example(threshold, kept, weight):
    shrunk = shrink_classes(Labels(EXAMPLE), threshold)
    assert shrunk.target.tolist() == [0]
    assert shrunk.classes.tolist() == [kept]
    assert shrunk.weights.tolist() == [weight]
    # The order of the classes plays no part.
    turned = shrink_classes(Labels(EXAMPLE[:, [2, 0, 3, 1]]), threshold)
    assert turned.target.tolist() == [1]
    assert turned.classes.tolist() == [[kept[k] for k in (2, 0, 3, 1)]]


@settings(deadline=None)
@given(
    seed=st.integers(0, 999),
    classes=st.integers(2, 12),
    threshold=st.floats(0, 1),
    scale=st.sampled_from([0, 1, 5, 99]),
)
def test_equals_the_loop(seed, classes, threshold, scale):
    p = probabilities(6, classes, seed=seed, scale=scale)
    shrunk = shrink_classes(Labels(p.reshape(2, 3, classes)), threshold)
    expected = [by_loop(row, threshold) for row in p.numpy()]
    assert shrunk.target.flatten().tolist() == [row[0] for row in expected]
    # Sums in another order may fall on the other side of a threshold that they meet to the last bit.
    near = (np.abs(_confidences(p.numpy()) - threshold) < 1e-12).any(-1)
    got = zip(shrunk.classes.flatten(0, 1).tolist(), shrunk.weights.flatten().tolist(), near, expected, strict=True)
    for kept, weight, close, (_, loop_kept, loop_weight) in got:
        assert close or (kept, weight) == (loop_kept, loop_weight)


def _confidences(p):
    s = -np.sort(-p, axis=-1)
    return np.stack([s[:, 0] / (s[:, 0] + s[:, c:].sum(-1)) for c in range(p.shape[1])], axis=-1)


def test_limits():
    uniform = torch.full((1, 6), 1 / 6)
    assert shrink_classes(Labels(uniform), 0.51).weights.tolist() == [0.0]
    # Rank 0 against rank C - 1: one half, up to rounding.
    assert shrink_classes(Labels(uniform), 0.49).classes.sum().item() == 2
    for p in ([0.9, 0.1], [0.5, 0.5], [1.0, 0.0]):
        assert shrink_classes(Labels(torch.tensor([p])), 0.1).weights.tolist() == [0.0]
    sure = shrink_classes(Labels(torch.tensor([[0.0, 1.0, 0.0]])), 1.0)
    assert (sure.target.tolist(), sure.weights.tolist()) == ([1], [1.0])
    assert shrink_classes(Labels(torch.empty(0, 3)), 0.9).classes.shape == (0, 3)


def test_the_higher_the_threshold_the_fewer_classes():
    p = probabilities(50, 10, scale=2)
    sizes = [
        torch.where(s.weights > 0, s.classes.sum(-1), 1)
        for s in (shrink_classes(Labels(p), threshold) for threshold in (0.5, 0.7, 0.9, 0.95, 0.99))
    ]
    for more, fewer in itertools.pairwise(sizes):
        assert (fewer <= more).all()
    assert len({int(size.sum()) for size in sizes}) == 5


def test_weights_and_thresholds_of_each_label():
    p = EXAMPLE.repeat(4, 1)
    shrunk = shrink_classes(Labels(p, torch.tensor([0.5, 2.0, 0.0, 1.0])), torch.tensor([0.9, 0.95, 0.9, 0.97]))
    assert shrunk.weights.tolist() == [0.5, 2.0, 0.0, 0.0]
    assert shrunk.classes.sum(-1).tolist() == [3, 2, 3, 4]
    # bfloat16 rounds 0.45 to 0.4492: 0.5 / 0.55 stays above 0.9.
    assert torch.equal(shrink_classes(Labels(EXAMPLE.bfloat16()), 0.9).classes, shrunk.classes[:1])


def test_of_equal_probabilities_the_first_class_is_kept():
    assert shrink_classes(Labels(torch.tensor([[0.2, 0.4, 0.4, 0.0]])), 0.6).target.tolist() == [1]


@pytest.mark.parametrize("target", [torch.tensor([1, 0]), torch.tensor([0.5, 0.2]), top_k(EXAMPLE, 2)])
def test_other_kinds_of_labels_are_refused(target):
    with pytest.raises(LimbeckError, match="shrinking the classes needs"):
        shrink_classes(Labels(target), 0.9)


# The cross-entropy over what is left


def test_cross_entropy_over_some_classes():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    kept = torch.tensor([[True, False, True, True]]).repeat(5, 1)
    labels = torch.tensor([0, 2, 3, 0, 2])
    places = torch.tensor([0, 1, 2, 0, 1])
    expected = F.cross_entropy(logits[:, [0, 2, 3]], places)
    torch.testing.assert_close(cross_entropy(logits, labels, classes=kept), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(cross_entropy(logits, labels, classes=kept[0]), expected, rtol=1e-14, atol=0)
    cross_entropy(logits, labels, classes=kept).backward()
    assert torch.equal(logits.grad[:, 1], torch.zeros(5, dtype=torch.float64))
    assert (logits.grad[:, [0, 2, 3]] != 0).all()
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels, classes=kept), logits)
    everything = torch.ones(4, dtype=torch.bool)
    assert torch.equal(cross_entropy(logits, labels, classes=everything), cross_entropy(logits, labels))


def test_constant_logits_give_the_logarithm_of_the_number_of_classes():
    shrunk = shrink_classes(Labels(EXAMPLE), 0.9)
    loss = cross_entropy(torch.full((1, 4), 7.0), shrunk.target, classes=shrunk.classes)
    assert loss.item() == pytest.approx(math.log(3), rel=1e-6)


def test_a_label_without_weight_may_be_left_out_of_the_classes():
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1.0, 2.0]], requires_grad=True)
    kept = torch.tensor([[False, True, True], [True, True, True]])
    loss = cross_entropy(logits, torch.tensor([0, 0]), classes=kept, weight=torch.tensor([0.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + math.e + math.e**2), rel=1e-6)
    assert logits.grad[0].tolist() == [0.0] * 3
    far = cross_entropy(logits[:1], torch.tensor([1]), classes=kept[:1])
    assert far.item() == 1e4
