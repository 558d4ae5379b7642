"""How far generated samples are from real ones."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import LimbeckError

Rows = Float[Tensor, "samples features"]
Real = Float[Tensor, "others real_features"]
_CHUNK = 1024


def energy_distance(generated: Rows, real: Real) -> float:
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|``, Euclidean (Székely and Rizzo 2013, doi 10.1016/j.jspi.2013.03.018).

    Zero for equal distributions only. The means within a set leave a sample's distance to itself out, so that the
    estimate has no bias and may be a little below 0.

    Args:
        generated: [N, D], N > 1.
        real: [M, D], M > 1.

    Raises:
        LimbeckError: other shapes, fewer samples, or values that are not finite.
    """
    generated, real = _pair(generated, real)
    within = [_distances(one, one) * len(one) / (len(one) - 1) for one in (generated, real)]
    return 2 * _distances(generated, real) - sum(within)


def sliced_wasserstein(generated: Rows, real: Real, directions: int = 256) -> float:
    """Mean over directions of the 1-Wasserstein distance of the projections (Bonneel et al. 2015).

    The directions are drawn from a seed of their own and are the same in every call of one D. With M != N the
    quantiles of the larger set are read at those of the smaller one.

    Args:
        generated: [N, D].
        real: [M, D].
        directions: number of directions.

    Raises:
        LimbeckError: as of :func:`energy_distance`.
    """
    generated, real = _pair(generated, real)
    drawn = np.random.default_rng(0).standard_normal((generated.shape[1], directions))
    units = torch.from_numpy(drawn / np.linalg.norm(drawn, axis=0)).to(generated)
    ordered = [(one @ units).sort(dim=0).values for one in (generated, real)]
    count = min(len(one) for one in ordered)
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    at = [(middles * len(one)).floor().long().to(one.device) for one in ordered]
    first, second = (one[rows] for one, rows in zip(ordered, at, strict=True))
    return float((first - second).abs().mean())


def modes_hit(
    generated: Float[Tensor, "samples dimensions"],
    centres: Float[Tensor, "modes dimensions"],
    reach: float,
    share: float = 0.5,
) -> int:
    """How many modes are hit: at least ``share / modes`` of all samples lie within ``reach`` of the centre.

    The usual count asks for a single sample (arXiv 1705.07761, section 4.1), which any wide cloud gives; half of a
    mode's even share is a choice of ours.

    Args:
        generated: [N, D].
        centres: [M, D].
        reach: Euclidean distance; each sample counts for its nearest centre.
        share: of N / M samples that a mode needs.
    """
    distances, nearest = torch.cdist(generated.double(), centres.double()).min(dim=1)
    counts = torch.bincount(nearest[distances <= reach], minlength=len(centres))
    return int((counts >= max(share * len(generated) / len(centres), 1)).sum())


def frechet_distance(generated: Rows, real: Real) -> float:
    """Squared 2-Wasserstein distance of the two sets' Gaussians (arXiv 1706.08500, equation 6), in float64.

    ``|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))``, the last trace as the sum of the square roots of the eigenvalues of
    ``C^(1/2) C' C^(1/2)``, which is symmetric: no complex roots and no epsilon on the diagonal.

    Args:
        generated: features [N, D], N > 1.
        real: features [M, D], M > 1.

    Raises:
        LimbeckError: as of :func:`energy_distance`.
    """
    generated, real = _pair(generated, real)
    means = [one.mean(0) for one in (generated, real)]
    # atleast_2d: the covariance of one feature is a number
    first, second = (torch.atleast_2d(torch.cov(one.T)) for one in (generated, real))
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return float((means[0] - means[1]).square().sum() + first.trace() + second.trace() - 2 * mixed)


def _distances(first: Rows, second: Real) -> float:
    """Mean Euclidean distance over all pairs, in pieces: N x M numbers may not fit."""
    total = sum(torch.cdist(part, second).sum() for part in first.split(_CHUNK))
    return float(total) / (len(first) * len(second))


def _pair(generated: Rows, real: Real) -> tuple[Rows, Real]:
    if generated.shape[1] != real.shape[1]:
        raise LimbeckError(
            f"generated samples have {generated.shape[1]} numbers each and real ones {real.shape[1]}: must be the same"
        )
    for name, one in (("generated", generated), ("real", real)):
        if len(one) < 2:
            raise LimbeckError(f"{len(one)} {name} samples: a distance of distributions needs at least 2")
        if not bool(one.isfinite().all()):
            row = int((~one.isfinite().all(dim=1)).nonzero()[0])
            raise LimbeckError(f"{name} sample {row} has values that are NaN or infinite: training diverged?")
    return generated.double(), real.double()
