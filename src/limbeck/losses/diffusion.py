"""Losses, noise levels and conversions of diffusion models.

Two ways of writing a noisy sample, with n ~ N(0, I):

    x_t = alpha x + sigma n, alpha^2 + sigma^2 = 1       variance preserving (DDPM, Stable Diffusion)
    x_t = x + sigma n                                    variance exploding (EDM), alpha = 1.

The first divided by alpha is the second at the noise level ``sigma / alpha``, so one code serves both. Every noise
level is one number a sample [B]; it is spread over the sample's other dimensions here. Half precision is computed in
float32. (Released code of DMD2 converts in float64, as its networks answer in half precision; from float32 the
difference is its rounding.)
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Loss, Reduction, Weight, in_full, reduce

Sample = Float[Tensor, "batch *shape"]
Level = Float[Tensor, "batch"]


def spread(level: Level, like: Sample) -> Float[Tensor, "batch ..."]:
    """One number a sample, [B] -> [B, 1, ...], to multiply ``like`` with."""
    return level.reshape(-1, *[1] * (like.ndim - 1))


def x0_from_eps(x_t: Sample, eps: Sample, alpha: Level, sigma: Level) -> Sample:
    """``(x_t - sigma eps) / alpha``: the clean sample that a predicted noise means (arXiv 2006.11239, eq. 15)."""
    x_t, eps = in_full(x_t), in_full(eps)
    return (x_t - spread(sigma, x_t) * eps) / spread(alpha, x_t)


def eps_from_x0(x_t: Sample, x0: Sample, alpha: Level, sigma: Level) -> Sample:
    """``(x_t - alpha x0) / sigma``: the inverse of :func:`x0_from_eps`."""
    x_t, x0 = in_full(x_t), in_full(x0)
    return (x_t - spread(alpha, x_t) * x0) / spread(sigma, x_t)


def v_from_x0(x_t: Sample, x0: Sample, alpha: Level, sigma: Level) -> Sample:
    """``v = alpha eps - sigma x0`` (arXiv 2202.00512, section 4), for alpha^2 + sigma^2 = 1."""
    return spread(alpha, x_t) * eps_from_x0(x_t, x0, alpha, sigma) - spread(sigma, x_t) * in_full(x0)


def x0_from_v(x_t: Sample, v: Sample, alpha: Level, sigma: Level) -> Sample:
    """``alpha x_t - sigma v`` (arXiv 2202.00512, appendix D), for alpha^2 + sigma^2 = 1."""
    return spread(alpha, x_t) * in_full(x_t) - spread(sigma, x_t) * in_full(v)


def karras_sigmas(count: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Float[Tensor, " count"]:
    """Noise levels from clean to noisy, float64 (arXiv 2206.00364, equation 5, in ascending order).

    ``(min^(1/rho) + i / (count - 1) (max^(1/rho) - min^(1/rho)))^rho``; a single one is ``sigma_max``.

    Raises:
        LimbeckError: no levels, or levels that are not ``0 < sigma_min < sigma_max``.
    """
    if count < 1:
        raise LimbeckError(f"the number of noise levels is {count}; it must be at least 1")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise LimbeckError(f"sigma_min is {sigma_min} and sigma_max {sigma_max}; they must be 0 < min < max")
    share = torch.linspace(0, 1, count, dtype=torch.float64) if count > 1 else torch.ones(1, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (low + share * (high - low)) ** rho


def scaled_linear_sigmas(
    count: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Float[Tensor, " count"]:
    """``sigma / alpha`` of the steps of a variance-preserving process, from clean to noisy, float64.

    ``abar_t = prod_s (1 - beta_s)``, ``sigma / alpha = sqrt((1 - abar) / abar)``, where sqrt(beta) grows linearly:
    diffusers' ``scaled_linear`` with the numbers of Stable Diffusion 1.5 and XL (arXiv 2112.10752, released code).
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, count, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, dim=0)
    return ((1 - abar) / abar).sqrt()


class Preconditioning(NamedTuple):
    """``D(x; sigma) = skip x + out F(input x)`` (arXiv 2206.00364, equation 7), each [B]."""

    skip: Level
    out: Level
    input: Level


def edm_preconditioning(sigma: Level, sigma_data: float) -> Preconditioning:
    """EDM's own (arXiv 2206.00364, table 1): F has unit variance in and out."""
    total = sigma**2 + sigma_data**2
    return Preconditioning(sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt())


def epsilon_preconditioning(sigma: Level) -> Preconditioning:
    """That of a network that predicts the noise (arXiv 2206.00364, table 1, column VP).

    With ``sigma`` for sigma / alpha, the input is ``alpha`` times the sample, and the answer that of
    :func:`x0_from_eps`.
    """
    return Preconditioning(torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt())


def edm_weight(sigma: Level, sigma_data: float) -> Level:
    """``1 / sigma^2 + 1 / sigma_data^2``: of squared errors of x0, those of F (arXiv 2206.00364, section 5)."""
    return sigma**-2.0 + sigma_data**-2.0


def epsilon_weight(sigma: Level) -> Level:
    """``1 / sigma^2``: turns squared errors of x0 into those of the noise, ``(eps' - eps) sigma = x - x'``."""
    return sigma**-2.0


def denoising_score_matching(
    denoised: Sample, clean: Sample, level_weight: Level, *, weight: Weight | None = None, reduction: Reduction = "mean"
) -> Loss:
    """``lambda(sigma) (D(x + sigma n; sigma) - x)^2``, mean over elements (arXiv 2206.00364, equations 2 and 8).

    Args:
        denoised: what the network says of the noisy sample, [B, ...].
        clean: the sample, of the same shape.
        level_weight: lambda of each sample's noise level, [B].
        weight: what a sample counts, [B].
        reduction: of one value a sample, as :func:`limbeck.losses.reduce`.
    """
    errors = (in_full(denoised) - in_full(clean)).square().flatten(1).mean(1)
    return reduce(in_full(level_weight) * errors, weight, reduction)


@torch.no_grad()
def distribution_matching_gradient(generated: Sample, real: Sample, fake: Sample) -> Sample:
    """The direction in which generated samples leave the real distribution (arXiv 2405.14867; 2311.18828, eq. 7, 8).

    ``g = (fake - real) / mean|generated - real|``, the mean over all dimensions of a sample but the first. Scaling
    all three by one number leaves g as it is. The released code divides without an epsilon and replaces what is not
    a number by 0; so does this, for infinite values too, of which torch's ``nan_to_num`` makes 3e38.

    Args:
        generated: samples of the generator.
        real: the teacher's denoised reading of them with noise added.
        fake: the same by the denoiser that was trained on generated samples.
    """
    generated, real, fake = in_full(generated), in_full(real), in_full(fake)
    scale = (generated - real).abs().flatten(1).mean(1)
    return ((fake - real) / spread(scale, generated)).nan_to_num(0.0, posinf=0.0, neginf=0.0)


def distribution_matching_loss(generated: Sample, real: Sample, fake: Sample) -> Float[Tensor, ""]:
    """``mean (generated - stopgrad(generated - g))^2 / 2``, g of :func:`distribution_matching_gradient`.

    Its gradient with respect to ``generated`` is exactly ``g / generated.numel()``; none goes to the others.
    """
    gradient = distribution_matching_gradient(generated, real, fake)
    generated = in_full(generated)
    # Not generated - (generated - g): that would round g to the last digit of generated.
    return 0.5 * ((generated - generated.detach()) + gradient).square().mean()
