"""What representations are worth: simple classifiers on embeddings that stay as they are."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError

CHUNK = 1024
"""Queries compared with all training embeddings at once."""


def standardisation(
    features: Float[Tensor, "samples features"],
) -> tuple[Float[Tensor, " features"], Float[Tensor, " features"]]:
    """Mean and standard deviation of each dimension; 1 for a dimension that is constant.

    Args:
        features: [N, D], those of the training samples: test samples are standardised by the same numbers.

    Raises:
        LimbeckError: no samples, or features that are not numbers.
    """
    if not len(features):
        raise LimbeckError("there are no embeddings")
    if not features.isfinite().all():
        raise LimbeckError("embeddings are NaN or infinite: broken weights, or diverged training")
    values = features.double()
    mean = values.mean(0)
    std = (values - mean).square().mean(0).sqrt()
    # Rounding leaves a constant dimension a spread of a few float32 digits, which must not be blown up to 1.
    constant = std <= 1e-6 * mean.abs()
    return mean.to(features.dtype), std.masked_fill(constant, 1.0).to(features.dtype)


def knn_predictions(
    features: Float[Tensor, "samples features"],
    labels: Int[Tensor, " samples"],
    queries: Float[Tensor, "queries features"],
    k: int = 20,
) -> Int[Tensor, " queries"]:
    """The most frequent class among the k nearest training embeddings (L2, every dimension standardised).

    Of equally frequent classes the first wins, as in scikit-learn.

    Args:
        features: training embeddings [N, D].
        labels: their classes [N], >= 0.
        queries: embeddings to classify [M, D].
        k: neighbours, >= 1; all samples where there are fewer.

    Raises:
        LimbeckError: k below 1, labels below 0, no samples, or features that are not numbers.
    """
    if k < 1:
        raise LimbeckError(f"k is {k}; it must be at least 1")
    mean, std = standardisation(features)
    if (labels < 0).any():
        raise LimbeckError(f"{int((labels < 0).sum())} training embeddings have no label: leave them out")
    known = (features - mean) / std
    classes = int(labels.max()) + 1
    found = []
    for part in ((queries - mean) / std).split(CHUNK):
        nearest = torch.cdist(part, known).topk(min(k, len(known)), largest=False).indices
        votes = torch.zeros(len(part), classes, device=part.device)
        votes.scatter_add_(1, labels[nearest].long(), torch.ones_like(nearest, dtype=votes.dtype))
        found.extend([votes.argmax(1)])
    return torch.cat(found) if found else labels.new_zeros(0).long()


def knn_accuracy(
    features: Float[Tensor, "samples features"],
    labels: Int[Tensor, " samples"],
    queries: Float[Tensor, "queries features"],
    query_labels: Int[Tensor, " queries"],
    k: int = 20,
) -> float:
    """Fraction of queries that :func:`knn_predictions` classifies right.

    Raises:
        LimbeckError: no queries, or as of :func:`knn_predictions`.
    """
    if not len(queries):
        raise LimbeckError("there are no queries to measure")
    return float((knn_predictions(features, labels, queries, k) == query_labels).double().mean())
