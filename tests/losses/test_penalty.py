import numpy as np
import pytest
import torch

from limbeck.losses import norm_penalty


def test_against_numpy() -> None:
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in [(3,), (2, 4), (2, 3, 1, 2), ()]]
    expected = sum(np.sqrt((t.numpy() ** 2).sum()) for t in tensors)
    assert float(norm_penalty(tensors)) == pytest.approx(expected, rel=1e-14)
    assert float(norm_penalty([torch.tensor([3.0, -4.0]), torch.tensor([[12.0]])])) == 17.0


def test_gradient_is_a_direction() -> None:
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: norm_penalty([w, 2 * w]), weight)
    small = torch.full((4,), 1e-8, requires_grad=True)
    zero = torch.zeros(2, 2, requires_grad=True)
    norm_penalty([small, zero]).backward()
    assert small.grad is not None
    assert zero.grad is not None
    assert small.grad.tolist() == pytest.approx([0.5] * 4, rel=1e-5)
    assert not zero.grad.any()


def test_half_precision_and_extremes() -> None:
    # 300^2 is above the largest float16.
    large = torch.full((4,), 300.0, dtype=torch.float16)
    assert norm_penalty([large]).dtype == torch.float32
    assert float(norm_penalty([large])) == pytest.approx(600.0)
    assert float(norm_penalty(iter([torch.full((4,), 1e4)]))) == pytest.approx(2e4)


def test_no_weights() -> None:
    assert float(norm_penalty([])) == 0.0
