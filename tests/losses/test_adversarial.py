import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.losses.adversarial import (
    gradient_penalty,
    non_saturating_discriminator,
    non_saturating_generator,
    reverse_gradient,
    student_teacher_discriminator,
)


def test_a_discriminator_that_tells_nothing():
    zero = torch.zeros(7)
    assert non_saturating_generator(zero).item() == pytest.approx(math.log(2), rel=1e-6)
    assert non_saturating_discriminator(zero, zero).item() == pytest.approx(2 * math.log(2), rel=1e-6)


@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=1, max_size=5))
def test_against_logarithms_of_sigmoids(pairs):
    real, fake = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))

    def log_sigmoid(h):
        return -math.log(1 + math.exp(-h))

    expected = -sum(log_sigmoid(r) + log_sigmoid(-f) for r, f in pairs) / len(pairs)
    # log(1 + x) of a tiny x keeps only the digits that 1 leaves it.
    assert non_saturating_discriminator(real, fake).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    expected = -sum(log_sigmoid(f) for _, f in pairs) / len(pairs)
    assert non_saturating_generator(fake).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_extremes_and_directions():
    for dtype in (torch.float32, torch.bfloat16):
        real, fake = (torch.tensor([-1e4, 0.0, 1e4], dtype=dtype, requires_grad=True) for _ in range(2))
        loss = non_saturating_discriminator(real, fake)
        assert loss.isfinite()
        loss.backward()
        assert (real.grad <= 0).all()
        assert (fake.grad >= 0).all()
    fake = torch.tensor([-50.0], requires_grad=True)
    non_saturating_generator(fake).backward()
    assert fake.grad.item() == pytest.approx(-1)  # does not saturate where the discriminator is sure


def test_weight_and_reduction():
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    each = non_saturating_discriminator(real, fake, reduction="none")
    assert non_saturating_discriminator(real, fake, weight=torch.tensor([0.0, 1.0])).item() == each[1].item()
    assert torch.autograd.gradcheck(
        non_saturating_discriminator, (real.double().requires_grad_(), fake.double().requires_grad_())
    )


TWO = arrays(np.float64, (3, 2), elements=st.floats(-30, 30))


@settings(deadline=None)
@given(TWO, TWO)
def test_student_teacher_discriminator_is_bce_over_all_elements(student, teacher):
    """PyTorch's own, on both batches one after the other with rows [1, 0] and [0, 1]."""
    of_student, of_teacher = torch.tensor(student), torch.tensor(teacher)
    target = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3, dtype=torch.float64)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(torch.cat([of_student, of_teacher]), target)
    # torch's softplus is a straight line from 20 on, where exp(-20) = 2e-9 is left out.
    torch.testing.assert_close(student_teacher_discriminator(of_student, of_teacher), expected, rtol=0, atol=5e-9)
    each = student_teacher_discriminator(of_student, of_teacher, reduction="none")
    torch.testing.assert_close(each.mean(), expected, rtol=0, atol=5e-9)
    # Logits of at least 0: what should be 0 costs ln 2 at least, and it is half of all elements.
    floor = student_teacher_discriminator(of_student.clamp(min=0), of_teacher.clamp(min=0))
    assert floor.item() >= 0.5 * math.log(2)


def test_student_teacher_discriminator_of_zeros_and_extremes():
    zeros = torch.zeros(5, 2)
    assert student_teacher_discriminator(zeros, zeros).item() == pytest.approx(0.6931472, abs=1e-7)
    sure = torch.tensor([[1e4, -1e4]], dtype=torch.bfloat16)
    assert student_teacher_discriminator(sure, -sure).item() == 0
    assert student_teacher_discriminator(-sure, sure).item() == pytest.approx(1e4, rel=1e-2)  # bfloat16 keeps 8 bits
    assert torch.autograd.gradcheck(
        student_teacher_discriminator, (torch.randn(2, 2).double().requires_grad_(), torch.ones(2, 2).double())
    )


@settings(deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=4))
def test_reverse_gradient(values):
    x = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    turned = reverse_gradient(x)
    assert torch.equal(turned, x)
    (gradient,) = torch.autograd.grad((turned * torch.arange(1.0, len(values) + 1)).sum(), x)
    assert gradient.tolist() == [-float(n) for n in range(1, len(values) + 1)]


@given(st.floats(0, 4), st.floats(0, 1))
def test_gradient_penalty_of_a_linear_critic(length, share):
    torch.manual_seed(0)
    w = torch.randn(2, 3, 3, dtype=torch.float64)
    w *= length / w.norm()
    real, fake = torch.randn(2, 4, 2, 3, 3, dtype=torch.float64)
    places = torch.full((4,), share, dtype=torch.float64)
    found = gradient_penalty(lambda x: (w * x).flatten(1).sum(1), real, fake, places)
    # The root is taken of 1e-12 more than the square.
    assert found.item() == pytest.approx((length - 1) ** 2, abs=1e-5)


def test_gradient_penalty_is_taken_between_and_of_each_sample():
    real, fake = (torch.randn(5, 3, dtype=torch.float64) for _ in range(2))
    share = torch.rand(5, dtype=torch.float64)
    between = (share[:, None] * real + (1 - share[:, None]) * fake).numpy()
    expected = (np.linalg.norm(2 * between, axis=1) - 1) ** 2  # of |x|^2, told by a map of three scores
    found = gradient_penalty(lambda x: x.square(), real, fake, share, reduction="none")
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-6, atol=1e-9)


def test_gradient_penalty_moves_the_critic():
    weight = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    real, fake = torch.randn(2, 6, 2, dtype=torch.float64)
    share = torch.rand(6, dtype=torch.float64)
    gradient_penalty(lambda x: x @ weight, real, fake, share).backward()
    np.testing.assert_allclose(weight.grad.numpy(), 2 * (5 - 1) * np.array([0.6, 0.8]), rtol=1e-9)
    dead = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    gradient_penalty(lambda x: x @ dead, real, fake, share).backward()
    assert dead.grad.isfinite().all()
