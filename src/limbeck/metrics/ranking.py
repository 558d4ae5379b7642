"""How well scores put the positives before the negatives."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError

Scores = Float[Tensor, " samples"]
Binary = Int[Tensor, " samples"] | Bool[Tensor, " samples"]


def auc(scores: Scores, labels: Binary) -> float:
    """Area under the ROC curve: the probability that a positive scores higher than a negative, ties counted half.

    Args:
        scores: [N], any scale; infinite ones are the largest and smallest.
        labels: [N], 1 for positives and 0 for negatives.

    Raises:
        LimbeckError: only one of the two, other labels, NaN, or lengths that differ.
    """
    true, false = _roc(scores, labels)
    return float(torch.trapezoid(true, false))


def partial_auc(scores: Scores, labels: Binary, max_fpr: float) -> float:
    """Area under the ROC curve up to a false positive rate, rescaled so that chance is 0.5 and perfection 1.

    ``(1 + (A - m) / (M - m)) / 2`` with the area A up to ``max_fpr``, m = max_fpr^2 / 2 that of chance and
    M = max_fpr that of perfection (McClish 1989, doi 10.1177/0272989X8900900307).

    Args:
        scores: as of :func:`auc`.
        labels: as of :func:`auc`.
        max_fpr: in (0, 1]; with 1 it is :func:`auc`.

    Raises:
        LimbeckError: max_fpr out of range, and as of :func:`auc`.
    """
    if not 0 < max_fpr <= 1:
        raise LimbeckError(f"max_fpr is {max_fpr}, must be above 0 and at most 1")
    true, false = _roc(scores, labels)
    last = int((false <= max_fpr).nonzero()[-1])
    area = torch.trapezoid(true[: last + 1], false[: last + 1])
    if last + 1 < len(false):  # the part of the next straight piece that lies before max_fpr
        step = max_fpr - false[last]
        end = true[last] + (true[last + 1] - true[last]) * step / (false[last + 1] - false[last])
        area = area + step * (true[last] + end) / 2
    chance = max_fpr**2 / 2
    return float((1 + (area - chance) / (max_fpr - chance)) / 2)


def _roc(scores: Scores, labels: Binary) -> tuple[Tensor, Tensor]:
    """True and false positive rates from (0, 0) to (1, 1), one point a distinct score, float64."""
    if scores.shape != labels.shape:
        raise LimbeckError(f"there are {len(scores)} scores for {len(labels)} labels")
    if scores.isnan().any():
        raise LimbeckError(f"the score of sample {int(scores.isnan().nonzero()[0])} is NaN")
    if ((labels != 0) & (labels != 1)).any():
        raise LimbeckError("labels of a ranking are 0 and 1")
    positive = labels == 1
    positives = int(positive.sum())
    if not 0 < positives < len(labels):
        raise LimbeckError(
            f"a ranking needs positives and negatives; {positives} of {len(labels)} samples are positive"
        )
    ordered, order = scores.double().sort(descending=True)
    _, counts = ordered.unique_consecutive(return_counts=True)
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    hits = torch.cat([counts.new_zeros(1), positive[order].cumsum(0)])[ends]
    return hits.double() / positives, (ends - hits).double() / (len(labels) - positives)
