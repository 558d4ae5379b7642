import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.losses.contrastive import info_nce, nt_xent


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


# NT-Xent


def by_hand(a, b, T, more=()):
    """The definition, pair by pair, in both directions."""
    a, b = ([v / np.linalg.norm(v) for v in views.numpy()] for views in (a, b))
    more = [v / np.linalg.norm(v) for v in more]

    def one(own, other, i):
        negatives = [own[j] for j in range(len(own)) if j != i] + [other[j] for j in range(len(own)) if j != i] + more
        positive = float(own[i] @ other[i]) / T
        return math.log(math.exp(positive) + sum(math.exp(float(own[i] @ v) / T) for v in negatives)) - positive

    return [one(a, b, i) + one(b, a, i) for i in range(len(a))]


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 6),
    size=st.integers(1, 5),
    T=st.floats(0.05, 3),
    queue=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_nt_xent_against_the_definition(count, size, T, queue, seed):
    a, b = vectors(count, size, seed)
    more = vectors(queue, size, seed + 1000)[0] if queue else None
    found = nt_xent(a, b, negatives=more, temperature=T, reduction="none")
    expected = by_hand(a, b, T, [] if more is None else list(more.numpy()))
    # As for InfoNCE, and logarithms of sums of up to 14 terms.
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert nt_xent(a, b, negatives=more, temperature=T).item() == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_nt_xent_of_equal_embeddings(count):
    same = torch.ones(count, 3, dtype=torch.float64)
    expected = 2 * math.log(2 * count - 1)  # nothing tells 2 N - 1 others apart; one pair has no negatives at all
    assert nt_xent(same, 2 * same, temperature=0.1).item() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("T", [0.1, 0.5, 1.0])
def test_nt_xent_of_aligned_pairs_and_orthogonal_others(T):
    views = torch.eye(5, dtype=torch.float64)
    expected = 2 * math.log1p((2 * 5 - 2) * math.exp(-1 / T))
    assert nt_xent(views, views, temperature=T).item() == pytest.approx(expected, abs=1e-13)


def test_nt_xent_is_the_same_with_the_views_swapped_and_the_samples_in_another_order():
    a, b = vectors(6, 4)
    loss = nt_xent(a, b)
    torch.testing.assert_close(nt_xent(b, a), loss, rtol=1e-13, atol=0)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(nt_xent(a[order], b[order]), loss, rtol=1e-13, atol=0)
    # A view of a second sample that came in the place of the first's other view would be another loss.
    assert not torch.allclose(nt_xent(a, b[order]), loss)


def test_nt_xent_is_twice_the_mean_over_all_views():
    """SimCLR's own formula, which has one term a view and divides by 2 N."""
    a, b = vectors(4, 3)
    z = torch.nn.functional.normalize(torch.cat([a, b]), dim=-1)
    similarity = (z @ z.T / 0.5).fill_diagonal_(-math.inf)
    partner = torch.arange(8).roll(4)
    simclr = torch.nn.functional.cross_entropy(similarity, partner)
    torch.testing.assert_close(nt_xent(a, b, temperature=0.5), 2 * simclr, rtol=1e-13, atol=0)


def test_nt_xent_gradient():
    a, b = vectors(4, 3)
    more = vectors(2, 3, seed=5)[0]
    torch.autograd.gradcheck(
        lambda x, y, z: nt_xent(x, y, negatives=z, temperature=0.3),
        (a.requires_grad_(), b.requires_grad_(), more.requires_grad_()),
    )
    one = torch.ones(1, 3, requires_grad=True)
    nt_xent(one, one).backward()
    assert one.grad is not None
    assert not one.grad.any()


def test_nt_xent_weight_half_precision_and_extremes():
    a, b = vectors(4, 3)
    each = nt_xent(a, b, reduction="none")
    weight = torch.tensor([1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(nt_xent(a, b, weight=weight), (each * weight).sum() / 4, rtol=1e-13, atol=0)
    half = (a.bfloat16(), b.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = nt_xent(*half)
    assert value.dtype == torch.float32
    assert torch.equal(value, nt_xent(*(views.float() for views in half)))
    for extreme in (torch.zeros(3, 4), 1e18 * torch.eye(3, 4), 1e-18 * torch.eye(3, 4)):
        views = extreme.clone().requires_grad_()
        nt_xent(views, extreme, temperature=0.01).backward()
        assert bool(views.grad.isfinite().all())


def test_nt_xent_wrong_input():
    a, b = vectors(4, 3)
    with pytest.raises(LimbeckError, match="temperature is -1"):
        nt_xent(a, b, temperature=-1)
    with pytest.raises(LimbeckError, match=r"first views have shape \[4, 3\], the second \[3, 3\]"):
        nt_xent(a, b[:3])
    with pytest.raises(LimbeckError, match="negatives have 2 features, the views 3"):
        nt_xent(a, b, negatives=a[:, :2])
