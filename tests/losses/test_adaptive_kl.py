import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr

from limbeck.errors import LimbeckError
from limbeck.labels import top_k
from limbeck.losses import forward_kl, reverse_kl
from limbeck.losses.adaptive_kl import adaptive_kl


def reference(student, teacher, head):
    """Token by token, class by class, by the definition."""
    values = []
    for s, t in zip(student, teacher, strict=True):
        q, p = np.exp(log_softmax(s)), np.exp(log_softmax(t))
        total, of_head, of_tail = 0.0, 0.0, 0.0
        for entry in np.argsort(p, kind="stable"):
            total += p[entry]
            if total >= head:
                of_head += abs(p[entry] - q[entry])
            else:
                of_tail += abs(p[entry] - q[entry])
        share = of_head / (of_head + of_tail)
        values.append(share * rel_entr(p, q).sum() + (1 - share) * rel_entr(q, p).sum())
    return np.array(values)


def pair(shape, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), head=st.sampled_from([0.2, 0.5, 0.9]), classes=st.integers(2, 9))
def test_against_the_definition(seed, head, classes):
    student, teacher = pair((4, classes), seed)
    ours = adaptive_kl(student, teacher, head=head, reduction="none")
    # float64 on both sides, values of up to 30.
    np.testing.assert_allclose(ours, reference(student.numpy(), teacher.numpy(), head), rtol=1e-10, atol=1e-12)


def test_head_and_tail_are_told_apart_in_any_order_of_the_classes():
    """p = (.1, .2, .7): only .7 is head. Student wrong in the head by .2, in the tail by .2: half and half."""
    p, q = torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([[0.1, 0.4, 0.5]])
    expected = (forward_kl(q.log(), p.log()) + reverse_kl(q.log(), p.log())) / 2
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]):
        torch.testing.assert_close(adaptive_kl(q[:, order].log(), p[:, order].log()), expected)


def test_limits():
    student, teacher = pair((6, 5), 3)
    torch.testing.assert_close(adaptive_kl(student, teacher, head=0), forward_kl(student, teacher))
    # Nothing is wrong: no weights, no divergence, no NaN.
    assert adaptive_kl(teacher, teacher).item() == pytest.approx(0, abs=1e-15)


def test_gradient_is_that_of_the_two_divergences_with_fixed_weights():
    student, teacher = pair((1, 4), 5)
    student.requires_grad_()
    forward, reverse = forward_kl(student, teacher), reverse_kl(student, teacher)
    value = adaptive_kl(student, teacher)
    share = ((value - reverse) / (forward - reverse)).detach()
    (gradient,) = torch.autograd.grad(value, student)
    (expected,) = torch.autograd.grad(share * forward + (1 - share) * reverse, student)
    torch.testing.assert_close(gradient, expected)


def test_extreme_logits_masks_and_top_k():
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]])
    value = adaptive_kl(student, teacher, weight=torch.tensor([1.0, 0.0]))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert not student.grad[1].any()
    student, teacher = pair((3, 4), 0)
    every = top_k(teacher.softmax(-1), 4)
    torch.testing.assert_close(adaptive_kl(student, every), adaptive_kl(student, teacher))
    with pytest.raises(LimbeckError, match="head is 2"):
        adaptive_kl(student, teacher, head=2)
    with pytest.raises(LimbeckError, match="infinite"):
        adaptive_kl(student, top_k(teacher.softmax(-1), 2), tail="zero")
