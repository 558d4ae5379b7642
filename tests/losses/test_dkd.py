import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from limbeck.losses import forward_kl
from limbeck.losses.dkd import dkd


def pair(shape, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64)


def reference(student, teacher, labels, alpha, beta, temperature):
    values = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        q, p = softmax(s / temperature), softmax(t / temperature)
        rest_p, rest_q = np.delete(p, y), np.delete(q, y)
        tckd = rel_entr([p[y], rest_p.sum()], [q[y], rest_q.sum()]).sum()
        values.append(alpha * tckd + beta * rel_entr(rest_p / rest_p.sum(), rest_q / rest_q.sum()).sum())
    return np.array(values)


@settings(max_examples=25, deadline=None)
@example(seed=180, classes=2, temperature=0.5)
@given(seed=st.integers(0, 999), classes=st.integers(2, 6), temperature=st.sampled_from([0.5, 1.0, 4.0]))
def test_against_the_definition(seed, classes, temperature):
    student, teacher = pair((5, classes), seed)
    labels = torch.arange(5) % classes
    ours = dkd(student, teacher, labels, alpha=0.7, beta=2.0, temperature=temperature, reduction="none")
    expected = reference(student.numpy(), teacher.numpy(), labels, 0.7, 2.0, temperature)
    # Sums of a few numbers in float64.
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-11)


def test_is_the_forward_kl_with_the_teachers_own_weight():
    """Equation 6 of the paper: KL = TCKD + (1 - p_y) NCKD."""
    student, teacher = pair((1, 7), 1)
    label = torch.tensor([3])
    beta = 1 - teacher.softmax(-1)[0, 3].item()
    torch.testing.assert_close(dkd(student, teacher, label, alpha=1, beta=beta), forward_kl(student, teacher))


def test_gradients():
    student, teacher = pair((2, 3), 2)
    labels = torch.tensor([0, 2])
    student.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: dkd(s, t, labels, beta=0.5, temperature=2.0), (student, teacher))


def test_extreme_logits_and_labels_that_do_not_count():
    student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e4, 1e4], [0.0, 1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 1e4], [0.0, 0.0, 9.0]])
    weight = torch.tensor([True, True, False])
    value = dkd(student, teacher, torch.tensor([0, 1, -100]), weight=weight)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert not student.grad[2].any()
    assert dkd(student, teacher, torch.tensor([0, 1, 2]), alpha=0, beta=0).item() == pytest.approx(0)
