"""From scores to decisions: where to cut."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError


def best_cutoff(scores: Float[Tensor, " samples"], labels: Int[Tensor, " samples"] | Bool[Tensor, " samples"]) -> float:
    """The cutoff with the highest accuracy of ``score >= cutoff``: the middle between two neighbouring scores.

    Of equally good ones the lowest; infinite where all samples are best called positive (-inf) or negative (inf). Fit
    it on validation samples, never on those that it is to be measured on.

    Args:
        scores: [N].
        labels: [N], 1 for positives and 0 for negatives.

    Raises:
        LimbeckError: no samples, scores that are NaN, or lengths that differ.
    """
    if not len(scores) or scores.shape != labels.shape:
        raise LimbeckError(f"a cutoff needs one score a label, at least one; got {len(scores)} for {len(labels)}")
    if scores.isnan().any():
        raise LimbeckError(f"the score of sample {int(scores.isnan().nonzero()[0])} is NaN")
    ordered, order = scores.double().sort()
    positive = labels[order].double()
    # right[k]: the first k are called negative, the others positive.
    none = positive.new_zeros(1)
    right = torch.cat([none, (1 - positive).cumsum(0)]) + positive.sum() - torch.cat([none, positive.cumsum(0)])
    ends = ordered.new_tensor([float("inf")])
    below, above = torch.cat([-ends, ordered]), torch.cat([ordered, ends])
    # Equal scores cannot be told apart.
    best = int(right.masked_fill(below == above, -1.0).argmax())
    return float((below[best] + above[best]) / 2)
