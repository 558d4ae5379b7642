"""Accuracy and proper scores, of all samples or by class; all fractions lie in [0, 1]."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.metrics.calibration import adaptive_ece, ece
from limbeck.metrics.predictions import check, log_probabilities
from limbeck.metrics.selective import aurc, e_aurc

Logits = Float[Tensor, "samples classes"]
ClassIndices = Int[Tensor, " samples"]


def top_k_accuracy(logits: Logits, labels: ClassIndices, k: int = 1) -> float:
    """Fraction of samples whose label is among the k largest logits; of equal logits the first class wins.

    Args:
        logits: [N, C].
        labels: [N] in [0, C).
        k: 1 <= k <= C.

    Raises:
        LimbeckError: k out of range, no samples, a label out of range, logits that are NaN or +inf.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise LimbeckError(f"k is {k}, must be between 1 and the number of classes, {logits.shape[-1]}")
    check(logits, labels)
    label = labels.unsqueeze(-1)
    own = logits.gather(-1, label.long())
    earlier = torch.arange(logits.shape[-1], device=logits.device) < label
    rank = ((logits > own) | ((logits == own) & earlier)).sum(-1)
    return float((rank < k).double().mean())


def nll(logits: Logits, labels: ClassIndices) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    return float(-log_probabilities(logits, labels).gather(-1, labels.long().unsqueeze(-1)).mean())


def brier(logits: Logits, labels: ClassIndices) -> float:
    """Mean over samples of ``sum_c (p_c - onehot_c)^2``, between 0 and 2 (Brier's own, not halved)."""
    probabilities = log_probabilities(logits, labels).exp()
    own = probabilities.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)
    return float((probabilities.square().sum(-1) - 2 * own + 1).mean())


def confusion_matrix(logits: Logits, labels: ClassIndices) -> Int[Tensor, "classes classes"]:
    """Counts, int64 [C true, C predicted]."""
    num_classes = logits.shape[-1]
    predicted = log_probabilities(logits, labels).argmax(-1)
    pairs = torch.bincount(labels.long() * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def per_class_accuracy(logits: Logits, labels: ClassIndices) -> Float[Tensor, " classes"]:
    """Fraction of each class's samples that are right, float64 [C]; NaN for a class without samples."""
    matrix = confusion_matrix(logits, labels).double()
    return matrix.diagonal() / matrix.sum(-1)


def group_accuracy(logits: Logits, labels: ClassIndices, train_counts: Int[Tensor, " classes"]) -> dict[str, float]:
    """Mean class accuracy over classes with many (> 100), medium (20 to 100), few (< 20) training samples.

    The groups of OLTR (arXiv 1904.05160, section 4). A group without test samples is left out.

    Args:
        logits: [N, C].
        labels: [N] in [0, C).
        train_counts: training samples of each class, [C].

    Raises:
        LimbeckError: as :func:`top_k_accuracy`.
    """
    return mean_by_size(per_class_accuracy(logits, labels), train_counts)


def mean_by_size(values: Float[Tensor, " classes"], train_counts: Int[Tensor, " classes"]) -> dict[str, float]:
    """Means over the classes of each group of :func:`group_accuracy`; NaN marks a class without a value."""
    counts, known = train_counts.to(values.device), ~values.isnan()
    groups = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    return {name: float(values[group & known].mean()) for name, group in groups.items() if (group & known).any()}


def summary(
    logits: Logits, labels: ClassIndices, train_counts: Int[Tensor, " classes"] | None = None
) -> dict[str, float]:
    """Every metric of a test split under its usual name.

    Returns:
        accuracy, top5_accuracy (with more than 5 classes), nll, brier, ece, adaptive_ece, aurc, e_aurc and,
        where ``train_counts`` is given, accuracy_many, accuracy_medium and accuracy_few as far as they exist.
    """
    metrics = {"accuracy": top_k_accuracy(logits, labels)}
    if logits.shape[-1] > 5:
        metrics["top5_accuracy"] = top_k_accuracy(logits, labels, k=5)
    metrics |= {
        "nll": nll(logits, labels),
        "brier": brier(logits, labels),
        "ece": ece(logits, labels),
        "adaptive_ece": adaptive_ece(logits, labels),
        "aurc": aurc(logits, labels),
        "e_aurc": e_aurc(logits, labels),
    }
    if train_counts is not None:
        groups = group_accuracy(logits, labels, train_counts)
        metrics |= {f"accuracy_{name}": value for name, value in groups.items()}
    return metrics
