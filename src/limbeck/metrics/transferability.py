"""How well a trained model suits a task that it was not trained on: from its features or outputs and the true labels.

Nothing is trained here. Features are [N, D] of N labelled images of the new task, labels their classes; everything is
computed in float64. What is a similarity or an accuracy is scaled by 100. The order of the images does not matter.
Sources: PARC (Bolya, Mittapalli, Hoffman, "Scalable Diverse Model Selection for Accessible Transfer Learning", arXiv
2111.06977) with its released code for PARC, RSA, DDS, LEEP, NCE, H-score and k-NN; LogME (You, Liu, Wang, Long, arXiv
2102.11005).
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.types import one_hot
from limbeck.metrics.probes import standardisation
from limbeck.metrics.similarity import spearman

Features: TypeAlias = Float[Tensor, "samples features"]
Reference: TypeAlias = Float[Tensor, "samples reference_features"]
Labels: TypeAlias = Int[Tensor, " samples"]


def parc(features: Features, labels: Labels) -> float:
    """Pairwise annotation representation comparison, in [-100, 100] (arXiv 2111.06977, section 4).

    Spearman's correlation, over all pairs of images, of ``1 - corr`` of their standardised features with the same of
    their one-hot labels. ``corr`` is Pearson's correlation between the two rows; ties get the mean of their ranks.

    Args:
        features: [N, D].
        labels: classes >= 0, [N].

    Raises:
        LimbeckError: fewer than three images, labels that are all equal or all different, or features that are not
            numbers.
    """
    known = _check(features, labels)
    return 100 * spearman(_pairs(_standardised(features)), _pairs(one_hot(known, int(known.max()) + 1, torch.float64)))


def rsa(features: Features, reference: Reference) -> float:
    """Representation similarity analysis, in [-100, 100]: :func:`parc` with features in the place of the labels.

    Args:
        features: [N, D].
        reference: features of a model that was trained on the task itself, [N, E].

    Raises:
        LimbeckError: fewer than three images, equal reference features, or features that are not numbers.
    """
    return 100 * spearman(_pairs(_standardised(features)), _pairs(_standardised(reference)))


def cka(features: Features, reference: Reference) -> float:
    """Linear centred kernel alignment of standardised features, at most 100 (arXiv 1905.00414, section 3).

    The products of the rows are centred without bias, so that unrelated features give about 0.

    Args:
        features: [N, D].
        reference: features of a model that was trained on the task itself, [N, E].

    Raises:
        LimbeckError: fewer than four images, or features that are not numbers.
    """
    x, y = _standardised(features), _standardised(reference)
    return _alignment(x @ x.T, y @ y.T)


def dds(features: Features, reference: Reference) -> float:
    """Duality diagram similarity: :func:`cka` with ``1 - cosine`` of the rows as kernel, as PARC's code has it.

    Arguments and errors as of :func:`cka`.
    """
    return _alignment(*(1 - _cosines(_standardised(each)) for each in (features, reference)))


def leep(probabilities: Float[Tensor, "samples source_classes"], labels: Labels) -> float:
    """Log expected empirical prediction, <= 0 (Nguyen et al., arXiv 2002.12462, section 3).

    ``mean_i log sum_z P(y_i | z) theta_iz`` with ``P(y, z)`` the mean of theta_iz over the images of class y.

    Args:
        probabilities: theta, of the source's own classes, [N, Z].
        labels: classes >= 0, [N].

    Raises:
        LimbeckError: too few images, or probabilities that are not numbers.
    """
    known = _check(probabilities, labels)
    theta = probabilities.double()
    joint = one_hot(known, int(known.max()) + 1, torch.float64).T @ theta / len(theta)
    given = joint / joint.sum(0).clamp(min=torch.finfo(torch.float64).tiny)
    expected = (given[known] * theta).sum(-1)
    return float(expected.clamp(min=torch.finfo(torch.float64).tiny).log().mean())


def nce(source_labels: Labels, labels: Labels) -> float:
    """Negative conditional entropy ``-H(Y | Z)``, <= 0, in nats (Tran, Nguyen, Hassner, arXiv 1908.08142, section 3).

    PARC's code adds 1e-5 to the frequencies; here ``0 log 0 = 0``.

    Args:
        source_labels: Z, the classes that the source predicts, [N].
        labels: Y, the true classes, [N].

    Raises:
        LimbeckError: no images.
    """
    if not len(labels):
        raise LimbeckError("the conditional entropy of no images is not defined")
    pairs = one_hot(labels, int(labels.max()) + 1, torch.float64).T @ one_hot(
        source_labels, int(source_labels.max()) + 1, torch.float64
    )
    joint = pairs / len(labels)
    return float(torch.special.entr(joint.sum(0)).sum() - torch.special.entr(joint).sum())


def h_score(features: Features, labels: Labels) -> float:
    """``tr(cov(F)^+ cov(E[F | Y]))`` of standardised features, from 0 to D (Bao et al., H-score, ICIP 2019).

    Args:
        features: [N, D].
        labels: classes >= 0, [N].

    Raises:
        LimbeckError: too few images, or features that are not numbers.
    """
    known = _check(features, labels)
    x = _standardised(features)
    members = one_hot(known, int(known.max()) + 1, torch.float64)
    means = members.T @ x / members.sum(0).clamp(min=1)[:, None]
    between = torch.cov(means[known].T).reshape(x.shape[1], -1)
    return float((torch.linalg.pinv(torch.cov(x.T).reshape_as(between), hermitian=True) @ between).trace())


def leave_one_out_knn(features: Features, labels: Labels, k: int = 1) -> float:
    """Accuracy in per cent of the k nearest other images (L2), by the most frequent class, of equals the first.

    Args:
        features: [N, D].
        labels: classes >= 0, [N].
        k: neighbours, from 1 to N - 1.

    Raises:
        LimbeckError: too few images, k out of range, or features that are not numbers.
    """
    known = _check(features, labels)
    if not 1 <= k < len(known):
        raise LimbeckError(f"k is {k}; it must lie between 1 and the {len(known) - 1} other images")
    distances = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.fill_diagonal_(math.inf).topk(k, largest=False).indices
    votes = one_hot(known[nearest], int(known.max()) + 1).sum(1)
    return 100 * float((votes.argmax(-1) == known).double().mean())


def logme(features: Features, labels: Labels) -> float:
    """Logarithm of maximum evidence: of linear regressions from the features to each one-hot column, mean, by N.

    Weights with prior variance 1 / alpha, noise with variance 1 / beta; both are found by the fixed point of
    arXiv 2102.11005, algorithm 1, in at most 11 rounds.

    Differs from the released code for more features than images: there the log-determinant leaves out the D - K
    directions in which the features do not vary, but the term ``D/2 ln alpha`` counts them.

    Args:
        features: [N, D].
        labels: classes >= 0, [N].

    Raises:
        LimbeckError: too few images, or features that are not numbers.
    """
    known = _check(features, labels)
    left, values, _ = torch.linalg.svd(features.double(), full_matrices=False)
    targets = one_hot(known, int(known.max()) + 1, torch.float64)
    return float(torch.stack([_evidence(left, values.square(), target) for target in targets.T]).mean())


def with_capacity(scores: Sequence[float], layers: Sequence[int]) -> list[float]:
    """Scores over all candidates, standardised, plus a fiftieth of each one's layers (arXiv 2111.06977, section 5).

    Equal scores are 0 before the correction.

    Args:
        scores: one a candidate.
        layers: of each candidate.

    Raises:
        LimbeckError: not one number of layers a score.
    """
    if len(scores) != len(layers):
        raise LimbeckError(f"there are {len(scores)} scores and {len(layers)} numbers of layers: give one each")
    values = torch.tensor(scores, dtype=torch.float64)
    spread = values.std(correction=0)
    values = (values - values.mean()) / torch.where(spread == 0, 1.0, spread)
    return [float(value) + count / 50 for value, count in zip(values, layers, strict=True)]


def principal_components(features: Features, dimensions: int) -> Float[Tensor, "samples components"]:
    """The first principal components, float64, [N, dimensions], or as many as there are with any variance.

    PARC's code has 32 of them, by a randomised decomposition; this one is exact.

    Raises:
        LimbeckError: fewer than one dimension, or features that are not numbers.
    """
    if dimensions < 1:
        raise LimbeckError(f"dimensions is {dimensions}; it must be at least 1")
    _check_features(features)
    centred = features.double() - features.double().mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    # What is left of a direction without variance is rounding, which standardising would blow up.
    rank = int((values > values[0] * max(centred.shape) * torch.finfo(torch.float64).eps).sum())
    return (left * values)[:, : max(1, min(dimensions, rank))]


def _evidence(left: Tensor, sigma: Tensor, target: Tensor) -> Tensor:
    """The evidence of one regression, by N; sigma are the squared singular values of the features."""
    count, varies = len(target), sigma > sigma.max() * torch.finfo(torch.float64).eps
    sigma, squares = sigma[varies], (left.T @ target).square()[varies]
    rest = (target.square().sum() - squares.sum()).clamp(min=0)
    alpha = beta = torch.ones((), dtype=torch.float64)
    for _ in range(11):
        ratio = alpha / beta
        gamma = (sigma / (sigma + ratio)).sum()
        norm = (sigma * squares / (ratio + sigma).square()).sum()
        residual = (squares / (1 + sigma / ratio).square()).sum() + rest
        alpha, beta = gamma / (norm + 1e-5), (count - gamma) / (residual + 1e-5)
        if abs(alpha / beta - ratio) / ratio <= 1e-3:
            break
    # D ln alpha less the log-determinant of alpha + beta F^T F: directions in which F does not vary cancel.
    determinant = (alpha / (alpha + beta * sigma)).log().sum()
    return (determinant + count * (beta / (2 * math.pi)).log() - beta * residual - alpha * norm) / (2 * count)


def _alignment(one: Tensor, other: Tensor) -> float:
    """100 times the cosine of two kernels, centred without bias."""
    if len(one) < 4:
        raise LimbeckError(f"the alignment of kernels needs at least four images, got {len(one)}")
    x, y = _centred(one), _centred(other)
    # Of a constant kernel centring leaves rounding, which is no similarity.
    if x.norm() <= 1e-12 * one.norm() or y.norm() <= 1e-12 * other.norm():
        return 0.0
    return 100 * float((x * y).sum() / (x.norm() * y.norm()))


def _centred(kernel: Tensor) -> Tensor:
    """Rows and columns of mean 0, the diagonal left out (Szekely and Rizzo, 2014)."""
    count = len(kernel)
    off = kernel - kernel.diagonal().diag()
    means = off.sum(0) / (count - 2)
    means = means - means.sum() / (2 * (count - 1))
    off = off - means[:, None] - means[None]
    return off - off.diagonal().diag()


def _cosines(rows: Tensor) -> Tensor:
    """Between all rows; 0 with a row of zeros."""
    lengths = rows.norm(dim=1, keepdim=True)
    unit = rows / torch.where(lengths == 0, 1.0, lengths)
    return unit @ unit.T


def _pairs(rows: Tensor) -> Tensor:
    """``1 - corr`` of every pair of rows; a row without variance correlates with nothing."""
    if len(rows) < 3:
        raise LimbeckError(f"comparing pairs of images needs at least three images, got {len(rows)}")
    distances = 1 - _cosines(rows - rows.mean(1, keepdim=True))
    first, second = torch.triu_indices(len(rows), len(rows), offset=1)
    return distances[first, second]


def _standardised(features: Tensor) -> Tensor:
    _check_features(features)
    mean, std = standardisation(features.double())
    return (features.double() - mean) / std


def _check_features(features: Tensor) -> None:
    if not features.isfinite().all():
        first = int((~features.isfinite()).any(1).nonzero()[0])
        raise LimbeckError(
            f"features are NaN or infinite, first of image {first}: broken weights, or diverged training"
        )


def _check(features: Tensor, labels: Tensor) -> Tensor:
    """The labels, as int64, once both are known to be usable."""
    _check_features(features)
    if len(labels) < 2:
        raise LimbeckError(f"transferability needs at least two labelled images, got {len(labels)}")
    if (labels < 0).any():
        raise LimbeckError(f"{int((labels < 0).sum())} of {len(labels)} images have no label: leave them out")
    return labels.long()
