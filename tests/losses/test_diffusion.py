import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from limbeck.errors import LimbeckError
from limbeck.losses import diffusion as D


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vp(count, seed=0):
    """alpha and sigma on the unit circle."""
    angle = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.4 + 0.05
    return angle.cos(), angle.sin()


def test_conversions_are_each_others_inverses_and_those_of_the_definition():
    x0, eps = randn(4, 3, 2), randn(4, 3, 2, seed=1)
    alpha, sigma = vp(4)
    a, s = alpha.numpy()[:, None, None], sigma.numpy()[:, None, None]
    x_t = torch.from_numpy(a * x0.numpy() + s * eps.numpy())
    # Two roundings of float64 divided by alpha or sigma, at least 0.05.
    close = {"atol": 1e-13, "rtol": 1e-13}
    torch.testing.assert_close(D.x0_from_eps(x_t, eps, alpha, sigma), x0, **close)
    torch.testing.assert_close(D.eps_from_x0(x_t, x0, alpha, sigma), eps, **close)
    v = D.v_from_x0(x_t, x0, alpha, sigma)
    np.testing.assert_allclose(v.numpy(), a * eps.numpy() - s * x0.numpy(), **close)
    torch.testing.assert_close(D.x0_from_v(x_t, v, alpha, sigma), x0, **close)


def test_half_precision_is_computed_in_float32():
    x_t, eps = randn(2, 8).bfloat16(), randn(2, 8, seed=1).bfloat16()
    alpha, sigma = torch.full((2,), 0.0683), torch.full((2,), 0.9977)
    found = D.x0_from_eps(x_t, eps, alpha, sigma)
    expected = (x_t.double() - 0.9977 * eps.double()) / 0.0683
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0.002, 80.0), (0.01, 10.0)])
def test_karras_sigmas_against_the_formula(low, high):
    found = D.karras_sigmas(1000, low, high).numpy()
    i = np.arange(1000)
    np.testing.assert_allclose(found, (low ** (1 / 7) + i / 999 * (high ** (1 / 7) - low ** (1 / 7))) ** 7, rtol=1e-12)
    assert found[0] == pytest.approx(low)
    assert found[-1] == pytest.approx(high)
    assert (np.diff(found) > 0).all()
    assert D.karras_sigmas(1, low, high).tolist() == pytest.approx([high])


def test_karras_sigmas_refuses():
    with pytest.raises(LimbeckError, match="at least 1"):
        D.karras_sigmas(0, 0.002, 80.0)
    with pytest.raises(LimbeckError, match="sigma_min is 80"):
        D.karras_sigmas(10, 80.0, 0.002)


def test_scaled_linear_sigmas_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    abar = scheduler.alphas_cumprod.double()
    # The library's products are float32.
    torch.testing.assert_close(D.scaled_linear_sigmas(), ((1 - abar) / abar).sqrt(), rtol=1e-4, atol=0)


@given(sigma=st.floats(1e-3, 1e3), data=st.floats(0.1, 10))
@settings(max_examples=40, deadline=None)
def test_edm_preconditioning_has_unit_variance_and_weight(sigma, data):
    """Of x = x0 + sigma n with variance s^2 + sigma^2: input and target of the network have variance 1."""
    level = torch.tensor([sigma], dtype=torch.float64)
    skip, out, scale = (float(part) for part in D.edm_preconditioning(level, data))
    assert scale**2 * (data**2 + sigma**2) == pytest.approx(1)
    # Target (x0 - skip x) / out.
    assert ((1 - skip) ** 2 * data**2 + skip**2 * sigma**2) / out**2 == pytest.approx(1)
    # The weight makes errors of x0 those of the network.
    assert float(D.edm_weight(level, data)) == pytest.approx(1 / out**2)


def test_epsilon_preconditioning_is_the_conversion():
    x0, n, answer = randn(4, 3), randn(4, 3, seed=1), randn(4, 3, seed=2)
    alpha, sigma = vp(4)
    level = sigma / alpha
    skip, out, scale = D.epsilon_preconditioning(level)
    exploding, preserving = x0 + level[:, None] * n, alpha[:, None] * x0 + sigma[:, None] * n
    torch.testing.assert_close(scale[:, None] * exploding, preserving)
    found = skip[:, None] * exploding + out[:, None] * answer
    torch.testing.assert_close(found, D.x0_from_eps(preserving, answer, alpha, sigma))
    # Errors of x0 with this weight are those of the noise.
    error = D.denoising_score_matching(found, x0, D.epsilon_weight(level))
    assert error.item() == pytest.approx(((answer - n) ** 2).mean().item(), rel=1e-12)


def test_denoising_score_matching_of_a_constant_error():
    x, sigma = randn(5, 2, 3), torch.tensor([0.002, 0.1, 1.0, 10.0, 80.0], dtype=torch.float64)
    weight = D.edm_weight(sigma, 0.5)
    assert D.denoising_score_matching(x, x, weight).item() == 0
    expected = 0.3**2 * (1 / sigma**2 + 4).mean().item()
    # x + 0.3 - x is 0.3 up to a rounding of x.
    assert D.denoising_score_matching(x + 0.3, x, weight).item() == pytest.approx(expected, rel=1e-12)


def matching_gradient(x, real, fake):
    """Sample by sample, number by number."""
    g = np.zeros_like(x)
    for row in range(len(x)):
        scale = np.mean([abs(a - b) for a, b in zip(x[row].flat, real[row].flat, strict=True)])
        g[row] = (fake[row] - real[row]) / scale
    return g


@pytest.mark.parametrize("shape", [(3, 2), (4, 1, 5, 5)])
def test_distribution_matching_against_numpy(shape):
    x, real, fake = (randn(*shape, seed=seed) for seed in range(3))
    x.requires_grad_()
    real.requires_grad_()
    fake.requires_grad_()
    loss = D.distribution_matching_loss(x, real, fake)
    loss.backward()
    g = matching_gradient(x.detach().numpy(), real.detach().numpy(), fake.detach().numpy())
    np.testing.assert_allclose(D.distribution_matching_gradient(x, real, fake).numpy(), g, rtol=1e-13)
    assert loss.item() == pytest.approx(0.5 * (g**2).mean(), rel=1e-13)
    # What the optimiser sees is g over the number of elements: two roundings apart (0.5 / N x 2 g, and g / N).
    g = D.distribution_matching_gradient(x, real, fake)
    torch.testing.assert_close(x.grad, g / x.numel(), rtol=4e-16, atol=0)
    assert real.grad is None
    assert fake.grad is None


def test_distribution_matching_is_zero_where_both_agree_and_does_not_see_the_scale():
    x, real, fake = (randn(3, 4, seed=seed).requires_grad_(seed == 0) for seed in range(3))
    loss = D.distribution_matching_loss(x, real, real)
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    one, other = (D.distribution_matching_gradient(c * x, c * real, c * fake) for c in (1.0, 1e-3))
    torch.testing.assert_close(one, other)


def test_distribution_matching_where_the_divisor_is_zero():
    x = torch.ones(2, 3)
    fake = torch.stack([torch.zeros(3), torch.ones(3)])
    assert not D.distribution_matching_gradient(x, x, fake).any()  # infinite, and 0 / 0
    assert D.distribution_matching_loss(x, x, fake).item() == 0


@pytest.mark.parametrize(("scale", "sign"), [(0.3, 1), (0.5, 0), (0.9, -1)])
def test_gaussian_generator_is_pulled_to_the_right_spread(scale, sign):
    """Data N(0, s^2), generator x = a z, both denoisers optimal: descent moves |a| towards s, and rests there."""
    s, levels = 0.5, D.karras_sigmas(1000, 0.002, 80.0)
    generator = torch.Generator().manual_seed(0)
    a = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    z, n = randn(200_000, 1), randn(200_000, 1, seed=1)
    sigma = levels[torch.randint(20, 981, (len(z),), generator=generator)][:, None]
    x = a * z
    x_t = x.detach() + sigma * n
    real, fake = s**2 / (s**2 + sigma**2) * x_t, scale**2 / (scale**2 + sigma**2) * x_t
    D.distribution_matching_loss(x, real, fake).backward()
    # In one dimension |g| can be large where x is near real, but its sign is exact: g ~ (c_fake - c_real) x_t.
    assert np.sign(-round(a.grad.item(), 6)) == sign


def test_gaussian_pull_is_the_expected_one():
    """The mean of the gradient over noise of one level, against a numerical integral."""
    s, a, sigma, x = 0.5, 0.8, 0.7, 0.4
    real_c, fake_c = s**2 / (s**2 + sigma**2), a**2 / (a**2 + sigma**2)

    def one(n):
        x_t = x + sigma * n
        return (fake_c - real_c) * x_t / abs(x - real_c * x_t) * np.exp(-(n**2) / 2) / np.sqrt(2 * np.pi)

    pole = (x / real_c - x) / sigma  # where x = real: cut out on both sides, evenly
    n = torch.linspace(-6, 6, 2_000_001, dtype=torch.float64)
    keep = (n - pole).abs() > 0.01
    x_t = x + sigma * n
    g = D.distribution_matching_gradient(
        torch.full_like(n, x)[:, None], (real_c * x_t)[:, None], (fake_c * x_t)[:, None]
    )[:, 0]
    density = torch.exp(-(n**2) / 2) / np.sqrt(2 * np.pi)
    found = float((g * density * keep).sum() * 12 / 2_000_000)
    expected = sum(integrate.quad(one, *ends)[0] for ends in ((-6, pole - 0.01), (pole + 0.01, 6)))
    # Rectangles of width 6e-6 beside a pole that is cut at 0.01.
    assert found == pytest.approx(expected, abs=1e-3)


def test_gradcheck():
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    x, y = randn(2, 3).requires_grad_(), randn(2, 3, seed=1).requires_grad_()
    alpha, vp_sigma = vp(2)
    assert torch.autograd.gradcheck(lambda a, b: D.denoising_score_matching(a, b, D.edm_weight(sigma, 0.5)), (x, y))
    for convert in (D.x0_from_eps, D.eps_from_x0, D.v_from_x0, D.x0_from_v):
        assert torch.autograd.gradcheck(lambda a, b, f=convert: f(a, b, alpha, vp_sigma), (x, y))
