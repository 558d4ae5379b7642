import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.losses.divergence import cross_entropy
from limbeck.losses.logit_adjustment import adjust_logits
from tests.methods.tables import Floats, softmax

FEW = settings(max_examples=40, deadline=None)
LOGITS = arrays(np.float64, (5, 3), elements=st.floats(-1e4, 1e4))
COUNTS = st.lists(st.integers(1, 10**6), min_size=3, max_size=3)


@pytest.mark.parametrize(("strength", "expected"), [(1.0, 0.9), (-0.5, 0.25), (2.5, 243 / 244), (0.0, 0.5)])
def test_two_classes_of_90_and_10(strength: float, expected: float) -> None:
    adjusted = adjust_logits(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([90, 10]), strength)
    assert adjusted.softmax(-1)[0].tolist() == pytest.approx([expected, 1 - expected], abs=1e-15)


@FEW
@given(LOGITS, COUNTS, st.floats(-3, 3))
def test_is_the_softmax_with_powers_of_the_counts(z: Floats, counts: list[int], strength: float) -> None:
    adjusted = adjust_logits(torch.from_numpy(z), torch.tensor(counts), strength)
    expected = np.exp(z - z.max(-1, keepdims=True)) * np.asarray(counts, dtype=np.float64) ** strength
    # Powers up to 1e18 and logits up to 1e4 in float64: a relative error of 1e4 x 1e-16.
    np.testing.assert_allclose(softmax(adjusted), expected / expected.sum(-1, keepdims=True), rtol=1e-10, atol=1e-12)


@FEW
@given(LOGITS, COUNTS, st.integers(2, 1000))
def test_only_ratios_count(z: Floats, counts: list[int], times: int) -> None:
    one, other = (adjust_logits(torch.from_numpy(z), torch.tensor(counts) * k, 2.5) for k in (1, times))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_one_strength_an_expert() -> None:
    z = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    counts, strengths = torch.tensor([50, 20, 10, 5, 1]), torch.tensor([-0.5, 1.0, 2.5])
    together = adjust_logits(z, counts, strengths)
    for expert, strength in enumerate(strengths.tolist()):
        assert torch.equal(together[:, expert], adjust_logits(z[:, expert], counts, strength))


def test_limits() -> None:
    z, label = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    plain = cross_entropy(z, label)
    assert torch.equal(adjust_logits(z, torch.tensor([9, 4, 2, 1]), 0), z)
    # Equal classes: a constant, which the softmax does not see.
    torch.testing.assert_close(cross_entropy(adjust_logits(z, torch.tensor([7] * 4), 2.5), label), plain)


def test_half_precision_is_computed_in_full() -> None:
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).bfloat16()
    adjusted = adjust_logits(z, torch.tensor([1000, 100, 10, 1]), 2.5)
    assert adjusted.dtype == torch.float32
    assert torch.equal(adjusted, adjust_logits(z.float(), torch.tensor([1000, 100, 10, 1]), 2.5))


def test_gradient() -> None:
    z = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    counts, label = torch.tensor([30, 5, 1]), torch.tensor([2, 0])
    assert torch.autograd.gradcheck(lambda x: cross_entropy(adjust_logits(x, counts, 1.5), label), (z,))
