"""Which labels are trusted: each function returns the same targets with weights multiplied.

Labels that were out (weight 0) stay out.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.types import Labels, TopK


def confidence(labels: Labels) -> Float[Tensor, "*batch"]:
    """The largest probability of each label, [*batch].

    Raises:
        LimbeckError: class indices or real values, which say nothing of confidence.
    """
    if isinstance(labels.target, TopK):
        return labels.target.log_probs.amax(-1).exp()
    return _probabilities(labels, "confidence").amax(-1)


def entropy(labels: Labels) -> Float[Tensor, "*batch"]:
    """The entropy of each label in nats, [*batch].

    Of a top k the rest counts as one more class: a lower bound.

    Raises:
        LimbeckError: class indices or real values.
    """
    if isinstance(labels.target, TopK):
        probabilities = torch.cat([labels.target.log_probs.exp(), labels.target.rest.unsqueeze(-1)], dim=-1)
    else:
        probabilities = _probabilities(labels, "entropy")
    return torch.special.entr(probabilities).sum(-1)


def confident(labels: Labels, threshold: float | int | Float[Tensor, ""] | Float[Tensor, "*batch"]) -> Labels:
    """Keep labels whose largest probability is >= the threshold (FixMatch, arXiv 2001.07685, equation 4).

    Args:
        labels: probabilities or top k, [*batch].
        threshold: one number, or one a label [*batch] (``thresholds[labels.predicted()]`` for one a class).

    Raises:
        LimbeckError: labels without confidence.
    """
    return labels.weighted(confidence(labels) >= threshold)


def most_confident(labels: Labels, fraction: float | int) -> Labels:
    """Keep the most confident of the labels in use.

    Args:
        labels: probabilities or top k, [*batch].
        fraction: in [0, 1], of those whose weight is not 0; their number is rounded to the nearest, half to
            even. Of equal confidences the first in the batch is kept.

    Raises:
        LimbeckError: a fraction outside [0, 1], labels without confidence.
    """
    if not 0 <= fraction <= 1:
        raise LimbeckError(f"fraction is {fraction}, must be between 0 and 1")
    used = (labels.weights != 0).flatten()
    scores = confidence(labels).flatten().masked_fill(~used, -1.0)
    order = scores.sort(descending=True, stable=True).indices
    # Without a host round trip: the first `kept` places in order of confidence.
    kept = (used.sum().double() * fraction).round()
    keep: Bool[Tensor, " entries"] = torch.zeros_like(used)
    keep[order] = torch.arange(len(order), device=order.device) < kept
    return labels.weighted(keep.reshape(labels.batch_shape))


def entropy_below(labels: Labels, threshold: float | int | Float[Tensor, ""] | Float[Tensor, "*batch"]) -> Labels:
    """Keep labels whose entropy in nats is below the threshold; one number, or one a label [*batch].

    Raises:
        LimbeckError: class indices or real values.
    """
    return labels.weighted(entropy(labels) < threshold)


def agreement(labels: Labels, others: Labels) -> Labels:
    """Keep labels whose most probable class is that of ``others``; both weights count.

    Args:
        labels: class labels of any kind, [*batch]; their target is kept.
        others: class labels of any kind, [*batch].

    Raises:
        LimbeckError: shapes that differ, or real values.
    """
    if labels.batch_shape != others.batch_shape:
        raise LimbeckError(
            f"labels have shape {list(labels.batch_shape)} and the others {list(others.batch_shape)}, must be the same"
        )
    return labels.weighted((labels.predicted() == others.predicted()) * others.weights)


def _probabilities(labels: Labels, what: str) -> Tensor:
    target = labels.target
    if isinstance(target, TopK) or not target.is_floating_point() or target.ndim == len(labels.batch_shape):
        raise LimbeckError(f"{what} needs class probabilities or a top k, not class indices or real values")
    return target
