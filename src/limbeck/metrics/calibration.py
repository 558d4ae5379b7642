"""Does a confidence of 0.8 mean right 8 times in 10, and how to make it so with one temperature."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.metrics.predictions import by_confidence, check

Logits = Float[Tensor, "samples classes"]
ClassIndices = Int[Tensor, " samples"]


class Reliability(NamedTuple):
    """A reliability diagram: one entry a bin of confidence.

    Attributes:
        edges: float64 [bins + 1]; bin b holds confidences in (edges[b], edges[b + 1]].
        confidence: mean confidence, float64 [bins]; NaN for an empty bin.
        accuracy: fraction right, float64 [bins]; NaN for an empty bin.
        count: samples, int64 [bins].
    """

    edges: Float[Tensor, " edges"]
    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    count: Int[Tensor, " bins"]  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


def reliability(logits: Logits, labels: ClassIndices, bins: int = 15) -> Reliability:
    """Bins of equal width over [0, 1].

    Raises:
        LimbeckError: no samples, no bins, a label out of range, logits that are NaN or +inf.
    """
    _check_bins(bins)
    ranked = by_confidence(logits, labels)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=logits.device)
    of = torch.bucketize(ranked.confidence, edges[1:-1])
    count = torch.bincount(of, minlength=bins)
    confidence = torch.bincount(of, ranked.confidence, minlength=bins) / count
    return Reliability(edges, confidence, torch.bincount(of, ranked.correct, minlength=bins) / count, count)


def ece(logits: Logits, labels: ClassIndices, bins: int = 15) -> float:
    """Expected calibration error (arXiv 1706.04599, equation 3), over bins of equal width.

    Args:
        logits: [N, C].
        labels: [N] in [0, C).
        bins: number of bins (lo, hi].

    Raises:
        LimbeckError: as :func:`reliability`.
    """
    diagram = reliability(logits, labels, bins)
    gaps = ((diagram.confidence - diagram.accuracy).abs() * diagram.count).nan_to_num(0.0)
    return float(gaps.sum() / len(labels))


def adaptive_ece(logits: Logits, labels: ClassIndices, bins: int = 15) -> float:
    """The same with bins of equal mass (arXiv 1904.01685, section 3.3): sizes differ by one at most.

    A tie of confidences that a border cuts counts on both sides with its mean accuracy.

    Raises:
        LimbeckError: as :func:`reliability`.
    """
    _check_bins(bins)
    ranked = by_confidence(logits, labels)
    gaps = (ranked.confidence - ranked.correct).tensor_split(bins)
    return float(torch.stack([gap.sum().abs() for gap in gaps]).sum() / len(labels))


def fit_temperature(logits: Logits, labels: ClassIndices) -> float:
    """The T that minimises the NLL of ``softmax(logits / T)`` (temperature scaling, arXiv 1706.04599).

    The NLL is convex in 1 / T, so its derivative is followed to 0 by Newton's method inside a bracket. The
    result lies in [0.01, 100]: a bound where the optimum is at 0 (all samples right, with any margin) or at
    infinity (worse than chance), and 1 where the temperature changes nothing.

    Raises:
        LimbeckError: no samples, a label out of range, or logits that are not finite.
    """
    check(logits, labels)
    if not logits.isfinite().all():
        raise LimbeckError("a temperature can only be fitted to finite logits; these hold -inf")
    scores = logits.double()
    scores = scores - scores.gather(-1, labels.long().unsqueeze(-1))

    def slopes(inverse: float) -> tuple[float, float]:
        p = (inverse * scores).softmax(-1)
        first = (p * scores).sum(-1)
        second = (p * scores.square()).sum(-1) - first.square()
        return float(first.mean()), float(second.mean())

    low, high, inverse = 0.01, 100.0, 1.0
    if slopes(inverse) == (0.0, 0.0):
        return 1.0
    if slopes(low)[0] >= 0:
        return 1 / low
    if slopes(high)[0] <= 0:
        return 1 / high
    while high - low > 1e-12 * high:
        first, second = slopes(inverse)
        low, high = (inverse, high) if first < 0 else (low, inverse)
        step = inverse - first / second if second > 0 else low
        # A Newton step out of the bracket is replaced by halving it, on the scale of logarithms.
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - inverse) <= 1e-12 * inverse:
            break
        inverse = following
    return 1 / inverse


def _check_bins(bins: int) -> None:
    if bins < 1:
        raise LimbeckError(f"bins is {bins}, must be at least 1")
