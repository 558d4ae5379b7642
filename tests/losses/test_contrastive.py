import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.losses.contrastive import info_nce


def vectors(count, size, seed=0, dtype=torch.float64):
    return torch.randn(2, count, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 6), size=st.integers(1, 5), T=st.floats(0.05, 3), seed=st.integers(0, 99))
def test_against_the_definition(count, size, T, seed):
    q, k = vectors(count, size, seed)
    a, b = q.numpy(), k.numpy()
    expected = []
    for i in range(count):
        similarity = [
            float(np.dot(a[i], b[j]) / (np.linalg.norm(a[i]) * np.linalg.norm(b[j]))) / T for j in range(count)
        ]
        expected.append(-similarity[i] + math.log(sum(math.exp(s) for s in similarity)))
    # exp of up to 1 / 0.05 = 20 and rounding of the cosines (1e-16) times 20.
    np.testing.assert_allclose(info_nce(q, k, temperature=T, reduction="none").numpy(), expected, atol=1e-13)


def test_limits():
    q = torch.eye(4, dtype=torch.float64)
    # All keys equal: nothing tells them apart. One pair: nothing to be told from.
    assert info_nce(q, torch.ones(4, 4, dtype=torch.float64)).item() == pytest.approx(math.log(4), abs=1e-13)
    assert info_nce(q[:1], q[1:2]).item() == 0
    # Orthogonal: -1 / T + log(e^(1 / T) + 3).
    assert info_nce(q, q, temperature=0.5).item() == pytest.approx(math.log1p(3 * math.exp(-2)), abs=1e-14)


def test_scale_of_a_vector_changes_nothing_and_gradient_is_right():
    q, k = vectors(5, 3)
    torch.testing.assert_close(info_nce(7 * q, k / 9), info_nce(q, k), rtol=1e-13, atol=0)
    torch.autograd.gradcheck(lambda a, b: info_nce(a, b, temperature=0.3), (q.requires_grad_(), k.requires_grad_()))


def test_a_zero_vector_has_similarity_0_and_a_finite_gradient():
    q, k = vectors(3, 4)
    q = torch.cat([torch.zeros(1, 4, dtype=q.dtype), q[1:]]).requires_grad_()
    values = info_nce(q, k, reduction="none")
    values.sum().backward()
    assert values[0].item() == pytest.approx(math.log(3), abs=1e-14)
    assert q.grad is not None
    assert bool(q.grad.isfinite().all())


def test_half_precision_is_computed_in_float32():
    q, k = vectors(6, 16, dtype=torch.float32).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = info_nce(q, k)
    assert value.dtype == torch.float32
    assert torch.equal(value, info_nce(q.float(), k.float()))


def test_weight_leaves_a_query_out_and_keeps_its_key():
    q, k = vectors(4, 3)
    each = info_nce(q, k, reduction="none")
    weight = torch.tensor([1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(info_nce(q, k, weight=weight), (each * weight).sum() / 4, rtol=1e-13, atol=0)


def test_wrong_input():
    q, k = vectors(4, 3)
    with pytest.raises(LimbeckError, match="temperature is 0"):
        info_nce(q, k, temperature=0)
    with pytest.raises(LimbeckError, match=r"queries have shape \[4, 3\], keys \[3, 3\]"):
        info_nce(q, k[:3])
