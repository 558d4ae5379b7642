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
    return class_probabilities(labels, "confidence").amax(-1)


def entropy(labels: Labels) -> Float[Tensor, "*batch"]:
    """The entropy of each label in nats, [*batch].

    Of a top k the rest counts as one more class: a lower bound.

    Raises:
        LimbeckError: class indices or real values.
    """
    if isinstance(labels.target, TopK):
        probabilities = torch.cat([labels.target.log_probs.exp(), labels.target.rest.unsqueeze(-1)], dim=-1)
    else:
        probabilities = class_probabilities(labels, "entropy")
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


def most_confident_per_class(labels: Labels, k: int) -> Labels:
    """Keep, of each most probable class, the k most confident of the labels in use (SSLD, arXiv 2103.05959).

    A class that fewer labels fall on keeps fewer; at most C k are kept.

    Args:
        labels: probabilities or top k, [*batch].
        k: labels a class. Of equal confidences the first in the batch is kept.

    Raises:
        LimbeckError: k below 1, or labels without confidence.
    """
    if k < 1:
        raise LimbeckError(f"k is {k}, must be at least 1 label a class")
    used = (labels.weights != 0).flatten()
    scores = confidence(labels).flatten().masked_fill(~used, -1.0)
    order = scores.sort(descending=True, stable=True).indices
    # Both sorts are stable: classes one after the other, in order of confidence within each.
    classes, grouped = labels.predicted().flatten()[order].sort(stable=True)
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(classes, classes)
    keep: Bool[Tensor, " entries"] = torch.zeros_like(used)
    keep[order[grouped]] = rank < k
    return labels.weighted(keep.reshape(labels.batch_shape))


def entropy_below(labels: Labels, threshold: float | int | Float[Tensor, ""] | Float[Tensor, "*batch"]) -> Labels:
    """Keep labels whose entropy in nats is below the threshold; one number, or one a label [*batch].

    Raises:
        LimbeckError: class indices or real values.
    """
    return labels.weighted(entropy(labels) < threshold)


def entropy_percentile(
    labels: Labels, percent: float | int, entropies: Float[Tensor, "*batch"] | None = None
) -> Labels:
    """Drop the labels in use whose entropy is above their ``percent``-th percentile (U2PL, arXiv 2203.03884).

    The percentile is that of the entropies whose weight is not 0, linear between two of them.

    Args:
        labels: [*batch] of any kind where ``entropies`` are given, else probabilities or top k.
        percent: in [0, 100]; 100 keeps all.
        entropies: [*batch], where they are not those of the labels themselves (another view, a model in training
            mode).

    Raises:
        LimbeckError: a percentage out of range, entropies of another shape, or labels without entropy.
    """
    if not 0 <= percent <= 100:
        raise LimbeckError(f"percent is {percent}, must be between 0 and 100")
    values = entropy(labels) if entropies is None else entropies
    if values.shape != labels.batch_shape:
        raise LimbeckError(f"entropies have shape {list(values.shape)}, the labels {list(labels.batch_shape)}")
    used = labels.weights != 0
    # Without a host round trip (and without torch.quantile's limit on the number of elements): what is not in use
    # is sorted to the end.
    ordered = values.masked_fill(~used, torch.inf).flatten().sort().values
    place = (used.sum() - 1).clamp(min=0).double() * (percent / 100)
    low, high = (ordered.gather(0, at.long().reshape(1)) for at in (place.floor(), place.ceil()))
    # Where both are the same value their difference is 0, and infinite where nothing is in use.
    between = torch.where(high == low, low, low + (place - place.floor()) * (high - low))
    return labels.weighted(values <= between)


def confidence_share(labels: Labels, threshold: float | int) -> Labels:
    """Weigh all labels by the share of them that is confident (DACS, arXiv 2007.08702).

    One number for the whole batch: the fraction of the labels in use whose largest probability is >= the
    threshold. Unlike a selection it says how far self-training as a whole is trusted.

    Args:
        labels: probabilities or top k, [*batch].
        threshold: 0.968 in DACS.

    Raises:
        LimbeckError: labels without confidence.
    """
    used = labels.weights != 0
    confident_ones = (confidence(labels) >= threshold) & used
    share = confident_ones.sum() / used.sum().clamp(min=1)
    return labels.weighted(share.to(labels.weights.dtype).expand(labels.batch_shape))


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


def class_probabilities(labels: Labels, what: str) -> Float[Tensor, "*batch classes"]:
    """The target, where it is a probability for every class.

    Raises:
        LimbeckError: it is not; ``what`` is what needs it.
    """
    target = labels.target
    if isinstance(target, TopK):
        raise LimbeckError(f"{what} needs the probabilities of all classes, not a top k")
    if not target.is_floating_point() or target.ndim == len(labels.batch_shape):
        raise LimbeckError(f"{what} needs class probabilities, not class indices or real values")
    return target
