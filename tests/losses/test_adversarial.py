import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.losses.adversarial import non_saturating_discriminator, non_saturating_generator


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
