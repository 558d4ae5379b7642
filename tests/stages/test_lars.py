"""LARS against its definition."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.stages.lars import LARS
from limbeck.stages.settings import FitSettings


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in ((3, 4), (4,), (2, 3, 2))]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.5},
        {"lr": 2.0, "weight_decay": 0.1, "momentum": 0.5, "eta": 0.01},
        {"lr": 1.0, "weight_decay": 0.01, "nesterov": True},
    ],
)
def test_steps_against_the_definition(options: dict[str, Any]) -> None:
    weights = parameters()
    optimizer = LARS(weights, **options)
    full = {"momentum": 0.9, "weight_decay": 0.0, "eta": 1e-3, "nesterov": False, **options}
    w = [weight.detach().numpy().copy() for weight in weights]
    v = [np.zeros_like(weight) for weight in w]
    rng = np.random.default_rng(0)
    for _ in range(4):
        for at, weight in enumerate(weights):
            g = rng.normal(size=w[at].shape)
            weight.grad = torch.tensor(g)
            ratio = 1.0
            if g.ndim > 1:
                g = g + full["weight_decay"] * w[at]
                ratio = full["eta"] * math.sqrt((w[at] ** 2).sum()) / math.sqrt((g**2).sum())
            scaled = full["lr"] * ratio * g
            v[at] = full["momentum"] * v[at] + scaled
            w[at] = w[at] - (full["momentum"] * v[at] + scaled if full["nesterov"] else v[at])
        optimizer.step()
        for ours, expected in zip(weights, w, strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), expected, atol=1e-13)


def test_weights_or_gradients_of_zero_are_not_scaled() -> None:
    zero, still, unused = (torch.nn.Parameter(torch.full((2, 2), value)) for value in (0.0, 1.0, 1.0))
    optimizer = LARS([zero, still, unused], lr=0.5)
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(zero.detach(), torch.full((2, 2), -0.5))
    assert torch.equal(still.detach(), torch.ones(2, 2))
    assert torch.equal(unused.detach(), torch.ones(2, 2))


def test_a_layers_step_does_not_depend_on_the_size_of_its_gradient() -> None:
    steps = []
    for size in (1.0, 1e6):
        (weight, _, _) = parameters()
        before = weight.detach().clone()
        weight.grad = size * torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
        LARS([weight], lr=1.0).step()
        steps.append(weight.detach() - before)
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-9, atol=0)
    length = float(steps[0].norm() / before.norm())
    assert length == pytest.approx(1e-3, rel=1e-9)


def test_state_goes_through_a_checkpoint() -> None:
    def step(optimizer: LARS, weights: list[torch.nn.Parameter]) -> None:
        for weight in weights:
            weight.grad = weight.detach() ** 2 + 1
        optimizer.step()

    one, other = parameters(), parameters()
    first, second = LARS(one, lr=0.1), LARS(other, lr=0.1)
    for _ in range(2):
        step(first, one)
    with torch.no_grad():
        for mine, theirs in zip(other, one, strict=True):
            mine.copy_(theirs)
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # tensors are shared otherwise
    step(first, one)
    step(second, other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_closure_and_settings() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))

    def closure() -> torch.Tensor:
        weight.grad = None
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert LARS([weight], lr=0.1).step(closure).item() == 4.0
    made = FitSettings(optimizer={"name": "lars", "lr": 6.4, "weight_decay": 1e-4}).make_optimizer([weight], fused=True)
    assert isinstance(made, LARS)
    with pytest.raises(LimbeckError, match=r"fit\.optimizer: Invalid eta: -1"):
        FitSettings(optimizer={"name": "lars", "lr": 1.0, "eta": -1})
    with pytest.raises(LimbeckError, match="Did you mean 'lars'"):
        FitSettings(optimizer={"name": "larss", "lr": 1.0})
