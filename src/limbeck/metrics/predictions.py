"""What every metric starts from: logits that were checked, and samples in order of confidence."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError


def check(logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]) -> None:
    """Refuse what cannot be measured.

    Raises:
        LimbeckError: no samples, a label outside [0, C), or logits that are NaN or +inf.
    """
    if not len(logits):
        raise LimbeckError("there are no samples to measure")
    num_classes = logits.shape[-1]
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        first = int(outside.nonzero()[0])
        raise LimbeckError(f"labels[{first}] is {int(labels[first])}, must be in [0, {num_classes})")
    # The largest logit shows it all: NaN propagates, +inf wins, and -inf is largest where all are -inf.
    broken = ~logits.amax(-1).isfinite()
    if broken.any():
        first = int(broken.nonzero()[0])
        raise LimbeckError(
            f"logits of {int(broken.sum())} of {len(logits)} samples are NaN or infinite, first row {first}"
        )


def log_probabilities(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]
) -> Float[Tensor, "samples classes"]:
    """``log softmax`` in float64, checked: in float32 confidences above 1 - 6e-8 would all be 1, and tie."""
    check(logits, labels)
    return logits.double().log_softmax(-1)


class Ranked(NamedTuple):
    """Samples from the most to the least confident.

    Attributes:
        confidence: largest probability, float64 [N], descending.
        correct: 1 where the most probable class is the label, else 0, float64 [N]; samples of equal
            confidence all hold the mean of their tie, the expectation over its orders.
    """

    confidence: Float[Tensor, " samples"]
    correct: Float[Tensor, " samples"]


def by_confidence(logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]) -> Ranked:
    """Rank the samples; the result does not depend on the order they came in."""
    log_confidence, predicted = log_probabilities(logits, labels).max(-1)
    log_confidence, order = log_confidence.sort(descending=True)
    correct = (predicted == labels)[order].double()
    _, tie, size = log_confidence.unique_consecutive(return_inverse=True, return_counts=True)
    mean = torch.zeros_like(size, dtype=correct.dtype).index_add_(0, tie, correct) / size
    return Ranked(log_confidence.exp(), mean[tie])
