"""From noise to samples with a denoiser: functions of ``denoise(x, sigma) -> x0``, noise levels falling to 0."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Noisy samples [B, ...] and their noise levels [B] -> clean samples [B, ...]."""


def heun(denoise: Denoise, noisy: Tensor, sigmas: Sequence[float]) -> Tensor:
    """The deterministic sampler of EDM (arXiv 2206.00364, algorithm 1): ``2 len(sigmas) - 1`` calls.

    Args:
        denoise: the network.
        noisy: samples at the noise level ``sigmas[0]``, [B, ...].
        sigmas: falling noise levels > 0; the last step goes from the last of them to 0.
    """
    x = noisy
    for here, there in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        slope = (x - denoise(x, _levels(here, x))) / here
        ahead = x + (there - here) * slope
        if there > 0:
            slope = (slope + (ahead - denoise(ahead, _levels(there, x))) / there) / 2
        x = x + (there - here) * slope
    return x


def euler(denoise: Denoise, noisy: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Euler's method on the same equation: ``len(sigmas)`` calls; with one it is ``denoise`` itself.

    Arguments as of :func:`heun`.
    """
    x = noisy
    for here, there in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        # x + (there - here) (x - x0) / here, so that the step to 0 is exactly x0.
        x = torch.lerp(denoise(x, _levels(here, x)), x, there / here)
    return x


def few_step(denoise: Denoise, noisy: Tensor, sigmas: Sequence[float], renoise: Callable[[Tensor], Tensor]) -> Tensor:
    """Predict the clean sample, add fresh noise of the next level, and again (arXiv 2303.01469, algorithm 1).

    ``len(sigmas)`` calls. Arguments as of :func:`heun`, and:

    Args:
        denoise: the network.
        noisy: samples at the noise level ``sigmas[0]``.
        sigmas: falling noise levels.
        renoise: gives fresh standard normal noise like a tensor.
    """
    clean = denoise(noisy, _levels(sigmas[0], noisy))
    for sigma in sigmas[1:]:
        clean = denoise(clean + sigma * renoise(clean), _levels(sigma, noisy))
    return clean


def _levels(sigma: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
