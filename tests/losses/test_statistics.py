import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.losses.statistics import StatisticsMatching, image_norm, image_variation, norm, statistics_distance


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Sequential:
    """Two layers of batch normalisation with running statistics of their own."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4), nn.BatchNorm1d(4)
    )
    for module in (body[1], body[5]):
        module.running_mean.normal_(generator=seeded(1))
        module.running_var.uniform_(0.5, 2, generator=seeded(2))
    return body.double().eval()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), space=st.sampled_from([(), (5,), (3, 4)]), batch=st.integers(1, 6))
def test_distance_against_numpy(seed: int, space: tuple[int, ...], batch: int) -> None:
    x = 3 * torch.randn(batch, 4, *space, generator=seeded(seed), dtype=torch.float64) + 1
    mean, variance = torch.rand(2, 4, generator=seeded(seed + 1), dtype=torch.float64)
    axes = (0, *range(2, x.ndim))
    expected = np.linalg.norm(x.numpy().mean(axes) - mean.numpy())
    expected += np.linalg.norm(x.numpy().var(axes) - variance.numpy())
    # float64 sums of a few dozen numbers of size 10.
    assert statistics_distance(x, mean, variance).item() == pytest.approx(expected, rel=1e-12)


def test_whole_network_against_numpy() -> None:
    body, x = network(), torch.randn(6, 2, 5, 5, generator=seeded(3), dtype=torch.float64)
    with StatisticsMatching(body, first=10.0) as matching:
        body(x)
        found = matching.distance().item()
    inputs = [body[0](x), body[:5](x)]
    expected = 0.0
    for weight, layer, values in zip((10, 1), (body[1], body[5]), inputs, strict=True):
        array = values.detach().numpy()
        axes = (0, *range(2, array.ndim))
        expected += weight * np.linalg.norm(array.mean(axes) - layer.running_mean.numpy())
        expected += weight * np.linalg.norm(array.var(axes) - layer.running_var.numpy())
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.5, -2.0])
def test_shifted_mean_of_one_layer(shift: float) -> None:
    """Same variance, mean moved by a in every channel: 10 ||a||_2, and 0 where nothing moved."""
    layer = nn.BatchNorm2d(3).double().eval()
    x = torch.randn(4, 3, 5, 5, generator=seeded(0), dtype=torch.float64)
    layer.running_mean.copy_(x.mean((0, 2, 3)) - shift)
    layer.running_var.copy_(x.var((0, 2, 3), correction=0))
    with StatisticsMatching(nn.Sequential(layer)) as matching:
        layer(x)
        # Rounding of the variance: 1e-16 of 1, times 10.
        assert matching.distance().item() == pytest.approx(10 * abs(shift) * math.sqrt(3), abs=1e-13)


def test_gradient_at_zero_distance_is_zero() -> None:
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    distance = statistics_distance(x, torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    distance.backward()
    assert distance.item() == 0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_gradient() -> None:
    x = torch.randn(3, 2, 4, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    mean, variance = torch.zeros(2, dtype=torch.float64), torch.full((2,), 3.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: statistics_distance(v, mean, variance), x)
    images = torch.rand(2, 1, 4, 5, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(image_variation, images)
    assert torch.autograd.gradcheck(image_norm, images)


def test_hooks_are_gone_afterwards_even_after_an_error() -> None:
    body, x = network(), torch.ones(2, 2, 5, 5, dtype=torch.float64)
    before = body(x)

    def fail() -> None:
        with StatisticsMatching(body) as matching:
            body(x)
            assert len(matching.terms) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not any(module._forward_pre_hooks for module in body.modules())
    assert torch.equal(body(x), before)


def test_each_question_is_about_the_passes_since_the_last() -> None:
    body, x = network(), torch.randn(4, 2, 5, 5, generator=seeded(4), dtype=torch.float64)
    with StatisticsMatching(body) as matching:
        body(x)
        first = matching.distance()
        body(x)
        assert torch.equal(matching.distance(), first)
        with pytest.raises(LimbeckError, match="no forward pass"):
            matching.distance()


def test_extreme_values_and_half_precision_stay_finite() -> None:
    for x in (torch.full((4, 2, 3, 3), 1e4), torch.full((4, 2, 3, 3), 6e4).half(), torch.zeros(1, 2, 1, 1)):
        x.requires_grad_(True)
        distance = statistics_distance(x, torch.zeros(2), torch.ones(2))
        distance.backward()
        assert distance.dtype == torch.float32
        assert distance.isfinite()
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_priors_against_numpy() -> None:
    x = torch.rand(3, 2, 5, 4, generator=seeded(0), dtype=torch.float64)
    n = x.numpy()
    differences = (n[..., :-1] - n[..., 1:], n[..., :-1, :] - n[..., 1:, :])
    differences += (n[..., :-1, :-1] - n[..., 1:, 1:], n[..., :-1, 1:] - n[..., 1:, :-1])
    expected = np.mean([sum(np.linalg.norm(d[i]) for d in differences) for i in range(3)])
    assert image_variation(x).item() == pytest.approx(expected, rel=1e-12)
    assert image_norm(x).item() == pytest.approx(np.mean([np.linalg.norm(image) for image in n]), rel=1e-12)
    assert image_variation(torch.full((2, 1, 4, 4), 0.3)).item() == 0
    # A short batch is a mean over itself.
    assert image_norm(x[:1]).item() == pytest.approx(np.linalg.norm(n[0]), rel=1e-12)


def test_norm_of_many_dimensions() -> None:
    values = torch.randn(2, 3, 7, generator=seeded(0), dtype=torch.float64)
    torch.testing.assert_close(norm(values), values.norm(dim=-1))


@pytest.mark.parametrize("body", [nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)])
def test_network_without_running_statistics_is_refused(body: nn.Module) -> None:
    with pytest.raises(LimbeckError, match="no batch normalisation with running statistics"):
        StatisticsMatching(nn.Sequential(body))
