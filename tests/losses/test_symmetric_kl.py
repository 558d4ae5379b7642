import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import rel_entr, softmax

from limbeck.errors import LimbeckError
from limbeck.labels import top_k
from limbeck.losses import js, symmetric_kl

P = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
Q = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
LOGITS = arrays(np.float64, (3, 4), elements=st.floats(-20, 20))


def test_the_published_case_is_not_the_jensen_shannon_divergence():
    """(KL(t || s) + KL(s || t)) / 2 = (0.0851228 + 0.0920329) / 2."""
    assert symmetric_kl(Q.log(), P.log()).item() == pytest.approx(0.0885778, abs=5e-8)
    assert js(Q.log(), P.log()).item() == pytest.approx(0.0219012, abs=5e-8)


def test_gradient_of_the_published_case():
    """((p_s - p_t) + p_s (log(p_s / p_t) - KL(s || t))) / 2."""
    z = Q.log().requires_grad_()
    symmetric_kl(z, P.log()).backward()
    assert z.grad is not None
    # Seven digits are given.
    np.testing.assert_allclose(z.grad[0], [-0.2071263, 0.0970148, 0.1101114], atol=5e-8)
    assert z.grad.sum().item() == pytest.approx(0, abs=1e-15)
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64)
    pair = torch.cat([z.detach(), P.log() + 1]).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: symmetric_kl(s, torch.cat([P, Q]).log(), weight=weight), (pair,))


@settings(deadline=None)
@given(LOGITS, LOGITS, st.floats(-50, 50), st.floats(0.5, 10))
def test_against_scipy_and_symmetric(s, t, shift, temperature):
    student, teacher = torch.tensor(s), torch.tensor(t)
    p, q = softmax(t / temperature, -1), softmax(s / temperature, -1)
    each = symmetric_kl(student, teacher, temperature=temperature, reduction="none")
    # float64; logits of up to 40 apart.
    np.testing.assert_allclose(each, (rel_entr(p, q) + rel_entr(q, p)).sum(-1) / 2, rtol=1e-9, atol=1e-11)
    swapped = symmetric_kl(teacher, student + shift, temperature=temperature, reduction="none")
    np.testing.assert_allclose(swapped, each, rtol=1e-9, atol=1e-11)
    own = student.clone().requires_grad_()
    same = symmetric_kl(own, student + shift)
    same.backward()
    assert abs(same.item()) < 1e-12
    assert own.grad is not None
    assert own.grad.abs().max() < 1e-12


def test_only_equal_distributions_give_zero():
    assert symmetric_kl(Q.log(), Q.log() + 1e-4 * torch.tensor([1.0, 0.0, 0.0])).item() > 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(dtype):
    student = torch.tensor([[1e4, 0.0, -1e4]], dtype=dtype, requires_grad=True)
    loss = symmetric_kl(student, -student.detach())
    loss.backward()
    # All mass on one class against all on another: each side costs the whole difference of the logits.
    assert loss.item() == pytest.approx(2e4, rel=1e-2)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_top_k_teachers():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    teacher = logits.roll(1, 0)
    full = top_k(teacher.softmax(-1), 6)
    torch.testing.assert_close(symmetric_kl(logits, full), symmetric_kl(logits, teacher))
    assert symmetric_kl(logits, top_k(teacher.softmax(-1), 2)) <= symmetric_kl(logits, teacher) + 1e-6
    with pytest.raises(LimbeckError, match='tail="zero"'):
        symmetric_kl(logits, top_k(teacher.softmax(-1), 2), tail="zero")
