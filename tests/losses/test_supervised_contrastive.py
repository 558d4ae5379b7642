import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.losses.supervised_contrastive import supervised_contrastive


def drawn(batch, pool, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    a = torch.randn(pool, size, generator=generator, dtype=torch.float64)
    family = torch.rand(batch, pool, generator=generator) < 0.4
    candidates = family | (torch.rand(batch, pool, generator=generator) < 0.6)
    return q, a, family, candidates


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 4), pool=st.integers(1, 7), T=st.floats(0.05, 3), seed=st.integers(0, 99))
def test_against_the_definition(batch, pool, T, seed):
    q, a, family, candidates = drawn(batch, pool, 3, seed)
    expected = []
    for i in range(batch):
        cos = [float(q[i] @ a[j] / (q[i].norm() * a[j].norm())) / T for j in range(pool)]
        members = [j for j in range(pool) if family[i, j]]
        total = sum(math.exp(cos[j]) for j in range(pool) if candidates[i, j])
        expected.append(-sum(math.log(math.exp(cos[j]) / total) for j in members) / max(1, len(members)))
    found = supervised_contrastive(q, a, family, candidates, temperature=T, reduction="none")
    # exp of up to 20 and rounding of the cosines (1e-16) times 20.
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_equal_embeddings():
    ones = torch.ones(5, 4, dtype=torch.float64)
    others = ~torch.eye(5, dtype=torch.bool)
    found = supervised_contrastive(ones, ones, others, others, reduction="none")
    torch.testing.assert_close(found, torch.full((5,), math.log(4), dtype=torch.float64), rtol=1e-14, atol=0)


def test_one_positive_is_info_nce():
    q, a, _, _ = drawn(4, 9, 3)
    own = torch.zeros(4, 9, dtype=torch.bool)
    own[range(4), range(4)] = True
    similarity = torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(a).T / 0.2
    wanted = torch.nn.functional.cross_entropy(similarity, torch.arange(4))
    torch.testing.assert_close(supervised_contrastive(q, a, own, temperature=0.2), wanted, rtol=1e-13, atol=0)


def test_order_of_the_pool_changes_nothing():
    q, a, family, candidates = drawn(3, 8, 4)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    found = supervised_contrastive(q, a[order], family[:, order], candidates[:, order])
    torch.testing.assert_close(found, supervised_contrastive(q, a, family, candidates), rtol=1e-13, atol=0)


def test_gradient():
    q, a, family, candidates = drawn(3, 5, 4)
    torch.autograd.gradcheck(
        lambda x, y: supervised_contrastive(x, y, family, candidates, temperature=0.5),
        (q.requires_grad_(), a.requires_grad_()),
    )


def test_an_anchor_without_family_costs_nothing_and_has_no_gradient():
    q, a, family, candidates = drawn(3, 5, 4)
    family[1], candidates[1] = False, False
    values = supervised_contrastive(q.requires_grad_(), a.requires_grad_(), family, candidates, reduction="none")
    assert values[1] == 0
    values.sum().backward()
    assert bool(a.grad.isfinite().all())
    assert q.grad[1].abs().max() == 0
    assert q.grad[0].abs().max() > 0


def test_what_is_no_candidate_gets_no_gradient():
    q, a, family, candidates = drawn(3, 5, 4)
    family[:, 2], candidates[:, 2] = False, False
    supervised_contrastive(q, a.requires_grad_(), family, candidates).backward()
    assert a.grad[2].abs().max() == 0
    assert a.grad[family.any(0)].abs().min() > 0


def test_a_positive_that_is_no_candidate_is_infinitely_far():
    q, a, family, candidates = drawn(1, 4, 3)
    family[:], candidates[:] = True, True
    candidates[0, 3] = False
    assert supervised_contrastive(q, a, family, candidates).item() == math.inf


def test_half_precision_and_large_vectors():
    q, a, family, candidates = drawn(3, 6, 4)
    wanted = supervised_contrastive(q.bfloat16().float(), a.bfloat16().float(), family, candidates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = supervised_contrastive(1e4 * q.bfloat16(), a.bfloat16(), family, candidates)
    assert found.dtype == torch.float32
    # 1e4 is rounded to bfloat16 together with q: 8 bits, over a temperature of 0.07.
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0)


def test_wrong_input():
    q, a, family, candidates = drawn(3, 6, 4)
    with pytest.raises(LimbeckError, match=r"temperature is 0; it must be above 0"):
        supervised_contrastive(q, a, family, temperature=0)
    with pytest.raises(LimbeckError, match=r"candidates has shape \[2, 6\]; 3 anchors and a pool of 6"):
        supervised_contrastive(q, a, family, candidates[:2])
