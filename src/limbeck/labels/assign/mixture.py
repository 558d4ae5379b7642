"""Gaussian mixtures: which component made a sample, by batch or online expectation-maximisation."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import LimbeckError

Covariance = Literal["diagonal", "full"]
Samples = Float[Tensor, "samples features"]


class Mixture(NamedTuple):
    """A mixture of K Gaussians in D dimensions.

    Attributes:
        weights: [K], >= 0 with sum 1.
        means: [K, D].
        covariances: [K, D] variances of each dimension, or [K, D, D].
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor


class Statistics(NamedTuple):
    """Sufficient statistics, means over samples: of r_k, r_k x and r_k x x^T (of its diagonal).

    Attributes:
        counts: [K].
        sums: [K, D].
        squares: as :attr:`Mixture.covariances`.
    """

    counts: Tensor
    sums: Tensor
    squares: Tensor


def log_densities(mixture: Mixture, samples: Samples) -> Float[Tensor, "samples components"]:
    """``log (w_k N(x_i; mu_k, Sigma_k))``, [N, K].

    Args:
        mixture: of K components.
        samples: [N, D].
    """
    apart = samples.unsqueeze(1) - mixture.means
    if mixture.covariances.ndim == 2:
        distances = (apart.square() / mixture.covariances).sum(-1)
        volume = mixture.covariances.log().sum(-1)
    else:
        factors = torch.linalg.cholesky(mixture.covariances)
        solved = torch.linalg.solve_triangular(factors, apart.permute(1, 2, 0), upper=False)
        distances = solved.square().sum(1).T
        volume = 2 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return mixture.weights.log() - 0.5 * (distances + volume + samples.shape[1] * math.log(2 * math.pi))


def responsibilities(mixture: Mixture, samples: Samples) -> Float[Tensor, "samples components"]:
    """``p(k | x_i)``, [N, K]: the E step."""
    return log_densities(mixture, samples).softmax(-1)


def log_likelihood(mixture: Mixture, samples: Samples) -> Float[Tensor, ""]:
    """Mean over samples of ``log sum_k w_k N(x_i; mu_k, Sigma_k)``."""
    return log_densities(mixture, samples).logsumexp(-1).mean()


def statistics(
    samples: Samples, shares: Float[Tensor, "samples components"], covariance: Covariance = "diagonal"
) -> Statistics:
    """What the M step needs of samples that belong to components by ``shares``.

    Args:
        samples: [N, D].
        shares: r, [N, K].
        covariance: diagonal or full.

    Raises:
        LimbeckError: no samples.
    """
    if not len(samples):
        raise LimbeckError("there are no samples to take the statistics of")
    mean = shares.T / len(samples)
    if covariance == "diagonal":
        squares = mean @ samples.square()
    else:
        squares = torch.einsum("kn,nd,ne->kde", mean, samples, samples)
    return Statistics(mean.sum(-1), mean @ samples, squares)


def maximise(found: Statistics, floor: float = 1e-6) -> Mixture:
    """The mixture that is most likely for given statistics: the M step.

    Args:
        found: the statistics.
        floor: added to every variance, as scikit-learn does, so that no component collapses.

    Raises:
        LimbeckError: a component that no sample belongs to.
    """
    if not bool((found.counts > 0).all()):
        empty = int((found.counts <= 0).nonzero()[0, 0])
        raise LimbeckError(f"no sample belongs to component {empty}: use fewer components, or other first means")
    means = found.sums / found.counts.unsqueeze(-1)
    if found.squares.ndim == 2:
        covariances = found.squares / found.counts.unsqueeze(-1) - means.square()
        return Mixture(found.counts / found.counts.sum(), means, covariances.clamp(min=0) + floor)
    covariances = found.squares / found.counts[:, None, None] - means.unsqueeze(-1) * means.unsqueeze(-2)
    eye = torch.eye(means.shape[1], dtype=means.dtype, device=means.device)
    return Mixture(found.counts / found.counts.sum(), means, covariances + floor * eye)


def fit_mixture(
    samples: Samples,
    start: Float[Tensor, "samples components"],
    covariance: Covariance = "diagonal",
    tolerance: float = 1e-6,
    max_steps: int = 200,
    floor: float = 1e-6,
) -> Mixture:
    """Batch expectation-maximisation (Dempster, Laird, Rubin 1977): the likelihood rises in every step.

    Samples are centred while it works, so that float32 keeps the digits of variances that are small beside the means.

    Args:
        samples: [N, D].
        start: first responsibilities, [N, K], such as the one-hot clusters of k-means.
        covariance: diagonal or full.
        tolerance: stop when the mean log-likelihood rises by less.
        max_steps: or after this many.
        floor: see :func:`maximise`.

    Raises:
        LimbeckError: no samples, or a component that loses all of its samples.
    """
    middle = samples.mean(0)
    centred = samples - middle
    mixture = maximise(statistics(centred, start, covariance), floor)
    before = -math.inf
    for _ in range(max_steps):
        densities = log_densities(mixture, centred)
        now = float(densities.logsumexp(-1).mean())
        if now - before < tolerance:
            break
        before = now
        mixture = maximise(statistics(centred, densities.softmax(-1), covariance), floor)
    return mixture._replace(means=mixture.means + middle)


def online_step(past: Statistics, samples: Samples, rate: float, floor: float = 1e-6) -> tuple[Statistics, Mixture]:
    """One step of online expectation-maximisation (Cappe and Moulines 2009, arXiv 0712.4273, equation 11).

    ``s <- (1 - rate) s + rate s(batch)``, the responsibilities those of the mixture that maximises the past s. With
    rate 1 it is a step of batch EM on the samples.

    Args:
        past: the statistics so far; of the first samples :func:`statistics` gives them.
        samples: the new ones, [N, D].
        rate: in (0, 1]; a sequence such as (t + 2)^-0.6 converges.
        floor: see :func:`maximise`.

    Returns:
        The new statistics, and the mixture that maximises them.

    Raises:
        LimbeckError: a rate out of range, no samples, or a component without any.
    """
    if not 0 < rate <= 1:
        raise LimbeckError(f"rate is {rate}; it must lie in (0, 1]")
    covariance: Covariance = "diagonal" if past.squares.ndim == 2 else "full"
    fresh = statistics(samples, responsibilities(maximise(past, floor), samples), covariance)
    mixed = Statistics(*(old + rate * (new - old) for old, new in zip(past, fresh, strict=True)))
    return mixed, maximise(mixed, floor)
