import inspect
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck import losses
from limbeck.errors import LimbeckError
from limbeck.labels import TopK, top_k
from limbeck.losses.support import on_one_support

P = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
Q = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
ALL = [
    losses.forward_kl,
    losses.reverse_kl,
    losses.js,
    partial(losses.generalized_jsd, beta=0.3),
    losses.skewed_forward_kl,
    losses.skewed_reverse_kl,
    losses.total_variation,
]
ids = ["forward_kl", "reverse_kl", "js", "jsd_0.3", "skewed_forward", "skewed_reverse", "total_variation"]
every_divergence = pytest.mark.parametrize("loss", ALL, ids=ids)


def pair(shape, seed):
    return 3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("k", "tail", "value"), [(1, "bucket", 0.0822829), (2, "renormalize", 0.0538142), (2, "zero", 0.2769578)]
)
def test_worked_values(k, tail, value):
    loss = losses.forward_kl(Q.log(), top_k(P, k), tail=tail)
    assert loss.item() == pytest.approx(value, abs=5.1e-8)  # given with 7 decimals


@every_divergence
@pytest.mark.parametrize("temperature", [1, 2.5])
@pytest.mark.parametrize("tail", ["bucket", "renormalize", "zero"])
def test_all_classes_kept_is_the_dense_divergence(loss, temperature, tail):
    student, teacher = pair((2, 3, 6), 0)
    target = top_k(teacher.softmax(-1), 6)
    if tail == "zero" and loss is losses.reverse_kl:
        with pytest.raises(LimbeckError, match="infinite"):
            loss(student, target, tail=tail, temperature=temperature)
        return
    torch.testing.assert_close(
        loss(student, target, tail=tail, temperature=temperature), loss(student, teacher, temperature=temperature)
    )


@every_divergence
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_bucket_grows_with_k_and_never_exceeds_dense(loss, seed):
    student, teacher = pair((8,), seed)
    values = [loss(student, top_k(teacher.softmax(-1), k)).item() for k in range(1, 9)]
    # Data processing inequality; equality up to float64 rounding where what is merged has one ratio.
    assert all(a <= b + 1e-13 for a, b in pairwise(values))
    assert values[-1] == pytest.approx(loss(student, teacher).item(), abs=1e-13)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 6))
def test_zero_mode_is_renormalized_kl_minus_log_of_the_students_mass(seed, k):
    student, teacher = pair((4, 7), seed)
    target = top_k(teacher.softmax(-1), k)
    mass = student.softmax(-1).gather(-1, target.indices).sum(-1)
    expected = losses.forward_kl(student, target, tail="renormalize", reduction="none") - mass.log()
    zero = losses.forward_kl(student, target, tail="zero", reduction="none")
    torch.testing.assert_close(zero, expected)
    assert (zero >= 0).all()


def test_zero_mode_js_counts_the_students_mass_outside():
    student, teacher = pair((5, 7), 1)
    target = top_k(teacher.softmax(-1), 3)
    q = student.softmax(-1)
    p = torch.zeros_like(q).scatter(-1, target.indices, target.log_probs.softmax(-1))
    inside = p > 0
    m = (p + q) / 2
    terms = torch.where(inside, p * (p / m).log() + q * (q / m).log(), torch.zeros_like(p)) / 2
    outside = q.masked_fill(inside, 0.0).sum(-1)
    expected = terms.nan_to_num(0.0).sum(-1) + 0.5 * math.log(2) * outside
    torch.testing.assert_close(losses.js(student, target, tail="zero", reduction="none"), expected)


def test_bucket_by_brute_force_in_numpy():
    student, teacher = pair((3, 9), 2)
    temperature, k = 2.0, 4
    target = top_k(teacher.softmax(-1), k)
    q = np.exp(student.numpy() / temperature)
    q /= q.sum(-1, keepdims=True)
    p = np.exp(teacher.numpy())
    p /= p.sum(-1, keepdims=True)
    for row in range(3):
        kept = np.argsort(-p[row])[:k]
        rest = [c for c in range(9) if c not in kept]
        p_k = np.append(p[row][kept], p[row][rest].sum()) ** (1 / temperature)
        p_k /= p_k.sum()
        q_k = np.append(q[row][kept], q[row][rest].sum())
        ours = losses.forward_kl(student[row], TopK(*(part[row] for part in target)), temperature=temperature)
        assert ours.item() == pytest.approx((p_k * np.log(p_k / q_k)).sum(), abs=1e-13)


def test_the_students_bucket_is_exact_when_it_is_confident():
    # 1 - sum exp would be 0 in float32.
    student = torch.tensor([[50.0, 0.0, 0.0]], requires_grad=True)
    log_q, _ = on_one_support(student, TopK(torch.tensor([[0]]), torch.tensor([[-0.1]]), torch.tensor([0.095])))
    assert log_q[0, 1].item() == pytest.approx(math.log(2) - 50, rel=1e-6)
    losses.forward_kl(student, TopK(torch.tensor([[0]]), torch.tensor([[0.9]]).log(), torch.tensor([0.1]))).backward()
    # q - p, the rest shared by the two classes as the student shares it; float32 rounding.
    torch.testing.assert_close(student.grad, torch.tensor([[0.1, -0.05, -0.05]]), atol=1e-6, rtol=0)


def test_students_own_top_k_may_be_the_support():
    student, teacher = pair((4, 6), 3)
    indices = student.topk(2).indices
    p = teacher.softmax(-1)
    kept = p.gather(-1, indices)
    loss = losses.reverse_kl(student, TopK(indices, kept.log(), 1 - kept.sum(-1)))
    assert 0 < loss.item() <= losses.reverse_kl(student, teacher).item()


def test_errors_name_what_is_wrong():
    student, teacher = pair((2, 4), 0)
    with pytest.raises(LimbeckError, match=r"\[2, 4\] and teacher \[2, 3\]"):
        inspect.unwrap(on_one_support)(student, teacher[:, :3])
    with pytest.raises(LimbeckError, match=r"top-k labels \[1, 2\]"):
        on_one_support(student, top_k(teacher[:1].softmax(-1), 2))
    with pytest.raises(LimbeckError, match=r"'zeros'.* Did you mean 'zero'"):
        inspect.unwrap(on_one_support)(student, top_k(teacher.softmax(-1), 2), tail="zeros")
