import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.labels.interpolate import interpolate, interpolate_probabilities
from limbeck.losses import forward_kl, soft_cross_entropy

P = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
Q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
LOGITS = arrays(np.float64, (3, 4), elements=st.floats(-30, 30))


@pytest.mark.parametrize(
    ("t", "target", "cross_entropy", "kl"),
    [
        (0.4, (0.584489, 0.260639, 0.154872), 0.968196, 0.0149946),
        (1.0, (0.7, 0.2, 0.1), 0.886941, 0.0851228),
        (0.0, (0.5, 0.3, 0.2), 1.029653, 0.0),
    ],
)
def test_worked_token(t, target, cross_entropy, kl):
    mixed = interpolate(Q.log(), P.log(), t)
    # Half a unit of the last decimal given.
    assert mixed.tolist() == pytest.approx(target, abs=5e-7)
    assert soft_cross_entropy(Q.log()[None], mixed[None]).item() == pytest.approx(cross_entropy, abs=5e-7)
    assert forward_kl(Q.log()[None], mixed.log()[None]).item() == pytest.approx(kl, abs=5e-8)


@settings(max_examples=30, deadline=None)
@given(LOGITS, LOGITS, st.floats(0, 1), st.floats(-50, 50))
def test_is_the_normalised_geometric_mixture(s, z, t, shift):
    q, p = (np.exp(x - x.max(-1, keepdims=True)) for x in (s, z))
    expected = q ** (1 - t) * p**t
    expected /= expected.sum(-1, keepdims=True)
    mixed = interpolate(torch.from_numpy(s + shift), torch.from_numpy(z - shift), t)
    np.testing.assert_allclose(mixed, expected, rtol=1e-11, atol=1e-15)


def test_order_is_the_teachers_where_the_student_is_uniform():
    teacher = torch.tensor([[0.3, -2.0, 5.0, 1.0]])
    mixed = interpolate(torch.full((1, 4), 7.0), teacher, 0.1)
    assert mixed.argsort(-1).tolist() == teacher.argsort(-1).tolist()


def test_a_class_that_one_side_excludes_has_no_probability():
    student = torch.tensor([[-torch.inf, 0.0, 1.0]])
    teacher = torch.tensor([[0.0, 1.0, -torch.inf]])
    for t in (0, 0.5, 1):
        assert interpolate(student, teacher, t).tolist() == [[0.0, 1.0, 0.0]]


def test_nothing_is_learnt_through_it_and_half_precision_is_computed_in_full():
    student, teacher = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    assert not interpolate(student, teacher, torch.tensor(0.5)).requires_grad
    half = interpolate(student.bfloat16(), teacher.bfloat16(), 0.5)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, interpolate(student.bfloat16().float(), teacher.bfloat16().float(), 0.5))
    extreme = interpolate(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]]), 0.5)
    assert extreme.tolist() == [[0.5, 0.5]]


@settings(max_examples=30, deadline=None)
@given(LOGITS, LOGITS, st.floats(0, 1), st.floats(0.1, 10))
def test_probabilities_are_interpolated(s: np.ndarray, z: np.ndarray, alpha: float, beta: float) -> None:
    def softmax(x: np.ndarray) -> np.ndarray:
        powers = np.exp(x - x.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    pair = torch.tensor([alpha, beta], dtype=torch.float64)
    found = interpolate_probabilities(torch.from_numpy(s), torch.from_numpy(z), pair[0], pair[1])
    expected = alpha * softmax(s) + (1 - alpha) * softmax(z / beta)
    np.testing.assert_allclose(found.exp(), expected, rtol=1e-11, atol=1e-300)
    # What it returns are log-probabilities: their softmax changes nothing.
    np.testing.assert_allclose(found.exp().sum(-1), 1, rtol=1e-12)


def test_interpolated_probabilities_at_the_ends() -> None:
    first, second = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, none, half = torch.tensor(1.0), torch.tensor(0.0), torch.tensor(0.5)
    assert torch.equal(interpolate_probabilities(first, second, one, half), first.log_softmax(-1))
    assert torch.equal(interpolate_probabilities(first, second, none, one), second.log_softmax(-1))


def test_interpolated_probabilities_of_extreme_logits() -> None:
    wild = torch.tensor([[1e4, -1e4, 0.0]])
    found = interpolate_probabilities(wild, -wild, torch.tensor(0.25), torch.tensor(2.0))
    assert found.exp()[0].tolist() == [0.25, 0.75, 0.0]
    assert found.isfinite().all()  # 0 is e^-10000 here, not -inf
    half = interpolate_probabilities(wild.bfloat16(), -wild.bfloat16(), torch.tensor(0.0), torch.tensor(1.0))
    assert half.dtype == torch.float32
    assert half.isfinite().all()


def test_gradient_of_interpolated_probabilities() -> None:
    first, second = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pair = torch.tensor([0.3, 1.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: interpolate_probabilities(a, b, pair[0], pair[1]),
        (first.requires_grad_(), second.requires_grad_()),
    )
