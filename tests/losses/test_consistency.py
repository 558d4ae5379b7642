import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.losses.consistency import consistency_cross_entropy
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.losses.entropy import entropy
from tests.methods.tables import Floats, log_softmax, softmax

LOGITS = arrays(np.float64, (4, 3), elements=st.floats(-30, 30))


@given(LOGITS, LOGITS)
def test_equation_and_gradient(s: Floats, t: Floats) -> None:
    """-sum_k p'_k log p_k and (softmax(z) - softmax(z')) / B."""
    z = torch.tensor(s, requires_grad=True)
    loss = consistency_cross_entropy(z, torch.tensor(t))
    loss.backward()
    expected = -(softmax(t) * log_softmax(s)).sum(-1).mean()
    # float64; cross-entropies of up to 60.
    np.testing.assert_allclose(loss.item(), expected, atol=1e-12)
    assert z.grad is not None
    np.testing.assert_allclose(z.grad.numpy(), (softmax(s) - softmax(t)) / 4, atol=1e-14)


@given(LOGITS, LOGITS)
def test_symmetric_is_the_mean_of_both_directions(s: Floats, t: Floats) -> None:
    found = consistency_cross_entropy(torch.tensor(s), torch.tensor(t), symmetric=True, reduction="none")
    expected = -0.5 * (softmax(t) * log_softmax(s)).sum(-1) - 0.5 * (softmax(s) * log_softmax(t)).sum(-1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradcheck(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: consistency_cross_entropy(a, b, symmetric=symmetric), (s, t))


def test_equal_logits_give_the_entropy_and_exactly_no_gradient() -> None:
    """Unlike soft_cross_entropy, whose rounding errors Adam would scale up to whole steps."""
    logits = 5 * torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    gradients = []
    for loss in (
        lambda z: consistency_cross_entropy(z, logits),
        lambda z: soft_cross_entropy(z, logits.softmax(-1)),
    ):
        z = logits.clone().requires_grad_(True)
        value = loss(z)
        value.backward()
        torch.testing.assert_close(value.detach(), entropy(logits))
        assert z.grad is not None
        gradients.append(z.grad.abs().max().item())
    assert gradients[0] == 0
    assert gradients[1] > 0


def test_extreme_logits() -> None:
    s = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    t = torch.tensor([[1e4, -1e4], [1e4, -1e4]])
    found = consistency_cross_entropy(s, t, reduction="none")
    found.sum().backward()
    torch.testing.assert_close(found.detach(), torch.tensor([0.0, 2e4]))
    assert s.grad is not None
    torch.testing.assert_close(s.grad, torch.tensor([[0.0, 0.0], [-1.0, 1.0]]))


def test_weight_and_half_precision() -> None:
    s = torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.bfloat16)
    t = torch.tensor([[0.0, 1.0], [5.0, 5.0]])
    found = consistency_cross_entropy(s, t, weight=torch.tensor([True, False]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, consistency_cross_entropy(s[:1].float(), t[:1]))
