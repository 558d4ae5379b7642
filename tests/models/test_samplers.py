import itertools
import math

import pytest
import torch

from limbeck.losses.diffusion import karras_sigmas
from limbeck.models.samplers import euler, few_step, heun


class Gaussian:
    """The best denoiser of N(0, s^2); counts its calls and keeps the levels it was asked for."""

    def __init__(self, s=0.5):
        self.s, self.levels = s, []

    def __call__(self, x, sigma):
        self.levels.append(float(sigma[0]))
        assert sigma.shape == (len(x),)
        variance = self.s**2
        return x * (variance / (variance + sigma.to(x)[:, None] ** 2))


def grid(steps, high=80.0):
    return karras_sigmas(steps, 0.002, high).flip(0).tolist()


def test_one_euler_step_is_the_denoiser():
    x = torch.randn(5, 2, dtype=torch.float64)
    denoise = Gaussian()
    assert torch.equal(euler(denoise, x, [80.0]), denoise(x, torch.full((5,), 80.0)))
    assert denoise.levels == [80.0, 80.0]


@pytest.mark.parametrize(("solve", "order"), [(euler, 1), (heun, 2)])
def test_solvers_converge_at_their_order_to_the_exact_flow(solve, order):
    """dx / dsigma = sigma x / (s^2 + sigma^2): x shrinks as the root of s^2 + sigma^2."""
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    exact = x * 0.5 / math.sqrt(0.25 + 4)
    errors = []
    for steps in (32, 64, 128):
        sigmas = torch.linspace(2.0, 2.0 / steps, steps, dtype=torch.float64).tolist()
        errors.append(float((solve(Gaussian(), x, sigmas) - exact).abs().max()))
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    # Orders hold in the limit; the last step of Heun's method is Euler's, of length h at slope of size h.
    assert all(rate == pytest.approx(order, abs=0.15) for rate in rates)


def test_calls():
    for steps in (1, 2, 18):
        counted = Gaussian()
        heun(counted, torch.randn(3, 2), grid(steps))
        assert len(counted.levels) == 2 * steps - 1
        counted = Gaussian()
        euler(counted, torch.randn(3, 2), grid(steps))
        assert len(counted.levels) == steps


def test_few_step_renoises_to_the_next_level():
    noises = [torch.full((2, 1), 3.0), torch.full((2, 1), -1.0)]
    left = iter(noises)
    denoise = Gaussian(s=1.0)
    x = torch.tensor([[8.0], [-4.0]])
    found = few_step(denoise, x, [4.0, 2.0, 1.0], lambda clean: next(left))
    clean = x / 17
    clean = (clean + 2 * noises[0]) / 5
    clean = (clean + 1 * noises[1]) / 2
    torch.testing.assert_close(found, clean)
    assert denoise.levels == [4.0, 2.0, 1.0]
    assert torch.equal(few_step(Gaussian(), x, [4.0], torch.randn_like), Gaussian()(x, torch.full((2,), 4.0)))
