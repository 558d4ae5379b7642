"""Which samples of a labelled training set are kept: the hardest fraction, of every class at least one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.types import Labels


def keep_hardest(
    labels: Labels, scores: Float[Tensor, " samples"], fraction: float | int, *, balanced: bool = False
) -> Labels:
    """Keep the ``floor(fraction * N)`` samples with the largest scores, at least one; the others get the weight 0.

    N are the samples whose weight is not 0. What a smaller fraction keeps, a larger one keeps too: with random scores
    these are nested random subsets. No class is left out while there are as many places as classes.

    Args:
        labels: class labels, [N].
        scores: [N]; infinite is hardest (never learnt). Of equal scores the first sample is kept.
        fraction: in (0, 1].
        balanced: keep of every class the same fraction, its own hardest, by the method of Sainte-Laguë, under which
            larger sets hold smaller ones.

    Raises:
        LimbeckError: a fraction out of range, scores of another number or NaN, or no samples.
    """
    if not 0 < fraction <= 1:
        raise LimbeckError(f"fraction is {fraction}, must be above 0 and at most 1")
    if scores.shape != labels.batch_shape:
        raise LimbeckError(f"there are {len(scores)} scores for labels of shape {list(labels.batch_shape)}")
    if scores.isnan().any():
        raise LimbeckError(f"the score of sample {int(scores.isnan().nonzero()[0])} is NaN")
    used = (labels.weights != 0).nonzero()[:, 0]
    if not len(used):
        raise LimbeckError("there are no samples to keep")
    order = used[_hardest_first(scores[used], labels.predicted()[used], balanced)]
    # Rounded first: 0.29 * 100 is 28.999999999999996.
    count = max(1, int(round(fraction * len(used), 9)))
    keep = torch.zeros(labels.batch_shape, dtype=torch.bool, device=scores.device)
    keep[order[:count]] = True
    return labels.weighted(keep)


def _hardest_first(
    scores: Float[Tensor, " samples"], classes: Int[Tensor, " samples"], balanced: bool
) -> Int[Tensor, " samples"]:
    """All samples in the order in which they are kept: first the hardest of each class, then the others."""
    order = scores.sort(descending=True, stable=True).indices
    rank = torch.empty_like(order)  # of each sample within its class, from 0
    size = torch.empty_like(order)
    for number in classes.unique():
        members = order[classes[order] == number]
        rank[members] = torch.arange(len(members), device=order.device)
        size[members] = len(members)
    if balanced:
        order = order[((rank[order] + 0.5) / size[order]).sort(stable=True).indices]
    # To put the hardest of each class first changes nothing where they are all among the kept ones anyway.
    return torch.cat([order[rank[order] == 0], order[rank[order] > 0]])
