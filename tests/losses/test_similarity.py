import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_expit, logit

from limbeck.errors import LimbeckError
from limbeck.losses.similarity import cosine_mse, soft_bce_with_logits
from limbeck.metrics.similarity import spearman

REAL = st.floats(-50, 50)
SHARE = st.floats(0, 1)


def tensor(values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


@given(st.lists(st.tuples(REAL, st.floats(-1, 1)), min_size=1, max_size=6))
def test_soft_bce_is_the_formula_and_its_gradient_sigmoid_minus_target(pairs):
    z, y = (np.array(column) for column in zip(*pairs, strict=True))
    logits = tensor(z, grad=True)
    loss = soft_bce_with_logits(logits, tensor(y))
    loss.backward()
    expected = -(y * log_expit(z) + (1 - y) * log_expit(-z))
    # Values of up to 100 in float64.
    np.testing.assert_allclose(loss.item(), expected.mean(), atol=1e-13, rtol=1e-13)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), (expit(z) - y) / len(z), atol=1e-15)


@given(st.floats(0.001, 0.999))
def test_soft_bce_is_smallest_at_the_logit_of_the_target_where_it_is_the_entropy(y):
    best = float(logit(y))
    entropy = -y * math.log(y) - (1 - y) * math.log1p(-y)
    at = soft_bce_with_logits(tensor([best - 0.1, best, best + 0.1]), tensor([y] * 3), reduction="none").tolist()
    assert at[1] == pytest.approx(entropy, abs=1e-14)
    assert min(at[0], at[2]) > at[1]


@given(st.floats(-2, 2))
def test_soft_bce_at_zero_is_ln_2_whatever_the_target(y):
    assert soft_bce_with_logits(tensor([0.0]), tensor([y])).item() == pytest.approx(math.log(2), abs=1e-15)


def test_soft_bce_of_extreme_logits_is_finite_and_hard_targets_are_the_usual_loss():
    z = tensor([1e4, -1e4, 1e4, -1e4])
    values = soft_bce_with_logits(z, tensor([1.0, 0.0, 0.0, 1.0]), reduction="none")
    assert values.tolist() == [0.0, 0.0, 1e4, 1e4]


def test_the_gradient_of_a_negative_target_never_vanishes():
    """Cosines below 0 are accepted as targets: sigmoid(z) - y stays above -y."""
    z = tensor([-1e3, -10.0, 0.0, 10.0], grad=True)
    soft_bce_with_logits(z, tensor([-0.2] * 4), reduction="sum").backward()
    assert z.grad is not None
    assert bool((z.grad >= 0.2).all())


def test_cosine_mse_of_equal_orthogonal_and_opposite_vectors():
    u = tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    v = tensor([[1.0, 2.0], [-2.0, 1.0], [-1.0, -2.0]])
    p = tensor([0.3, 0.3, 0.3])
    found = cosine_mse(u, v, p, reduction="none").numpy()
    np.testing.assert_allclose(found, [(1 - 0.3) ** 2, 0.3**2, (-1 - 0.3) ** 2], atol=1e-15)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(0, 99))
def test_cosine_mse_does_not_see_the_lengths(one, other, seed):
    u, v = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p = torch.linspace(-1, 1, 4, dtype=torch.float64)
    cosine = (u * v).sum(-1).numpy() / (np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1))
    # Cosines of rounding 1e-16, times up to 4.
    np.testing.assert_allclose(cosine_mse(one * u, other * v, p).item(), ((cosine - p.numpy()) ** 2).mean(), atol=1e-14)


def test_gradients():
    u, v = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    p = tensor([0.1, 0.5, -0.3], grad=True)
    torch.autograd.gradcheck(cosine_mse, (u, v, p))
    torch.autograd.gradcheck(soft_bce_with_logits, (u[:, 0], p))


def test_a_zero_vector_has_cosine_0_and_a_finite_gradient():
    u = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    loss = cosine_mse(u, torch.ones_like(u), tensor([0.5]))
    loss.backward()
    assert loss.item() == 0.25
    assert u.grad is not None
    assert bool(u.grad.isfinite().all())


def test_ranks_do_not_see_a_monotone_map_of_the_scores_but_the_losses_do():
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(20, generator=generator, dtype=torch.float64) * 2 - 1
    gold = cosines + 0.5 * torch.randn(20, generator=generator, dtype=torch.float64)
    mapped = (cosines + 1) / 2
    assert spearman(mapped, gold) == spearman(cosines, gold)
    z = torch.randn(20, generator=generator, dtype=torch.float64)
    assert (soft_bce_with_logits(z, mapped) - soft_bce_with_logits(z, cosines)).abs() > 0.01
    u, v = torch.randn(2, 20, 3, generator=generator, dtype=torch.float64)
    assert (cosine_mse(u, v, mapped) - cosine_mse(u, v, cosines)).abs() > 0.01


def test_half_precision_is_computed_in_float32():
    z = torch.tensor([0.3, -2.0]).bfloat16()
    u, v = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = torch.tensor([0.25, 0.5])
    assert soft_bce_with_logits(z, y).dtype == cosine_mse(u, v, y).dtype == torch.float32
    assert torch.equal(cosine_mse(u, v, y), cosine_mse(u.float(), v.float(), y))
    assert torch.equal(soft_bce_with_logits(z, y), soft_bce_with_logits(z.float(), y))


def test_weights_select():
    z, y = tensor([0.3, -2.0, 5.0]), tensor([0.2, 0.9, 0.1])
    weight = tensor([1.0, 3.0, 0.0])
    each = soft_bce_with_logits(z, y, reduction="none")
    torch.testing.assert_close(soft_bce_with_logits(z, y, weight=weight), (each[0] + 3 * each[1]) / 4)
    nothing = torch.zeros(3, dtype=torch.bool)
    assert soft_bce_with_logits(z, y, weight=nothing).item() == 0


def test_wrong_shapes():
    with pytest.raises(LimbeckError, match=r"the scores have shape \[2\], the targets \[1\]"):
        soft_bce_with_logits(tensor([0.1, 0.2]), tensor([0.1]))
    with pytest.raises(LimbeckError, match=r"the vectors have shapes \[1, 2\] and \[1, 3\]"):
        cosine_mse(tensor([[0.1, 0.2]]), tensor([[0.1, 0.2, 0.3]]), tensor([0.1]))
    with pytest.raises(LimbeckError, match=r"the scores have shape \[1\], the targets \[2\]"):
        cosine_mse(tensor([[0.1, 0.2]]), tensor([[0.1, 0.2]]), tensor([0.1, 0.2]))
