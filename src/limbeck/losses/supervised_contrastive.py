"""Contrast with families of positives, and with whatever pool of vectors they are told from."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.losses.feature import direction, products
from limbeck.losses.reduction import Loss, Reduction, Weight, in_full, reduce


def supervised_contrastive(
    anchors: Float[Tensor, "batch features"],
    pool: Float[Tensor, "pool features"],
    family: Bool[Tensor, "anchors members"],
    candidates: Bool[Tensor, "others candidates"] | None = None,
    *,
    temperature: float | int = 0.07,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``-1/|F_i| sum_{a in F_i} log(exp(cos(q_i, a) / T) / sum_{a' in C_i} exp(cos(q_i, a') / T))`` for every anchor.

    The outer form of supervised contrast (SupCon, arXiv 2004.11362, equation 2) for any pool: the anchors themselves,
    keys of other views, a queue. With one member a family and that member and a queue as candidates it is MoCo's
    InfoNCE (arXiv 1911.05722, equation 1).

    Args:
        anchors: q, [B, D]; brought to length 1, zero vectors have similarity 0 with everything.
        pool: a, [K, D], likewise. Not detached.
        family: F_i, which of the pool are an anchor's positives, [B, K]. An anchor without any has the loss 0.
        candidates: C_i, what these are told from, [B, K]; the whole pool where not given. The loss is infinite where a
            positive is not among them.
        temperature: T > 0.
        weight: of each anchor, [B] >= 0.
        reduction: of one value an anchor, as :func:`limbeck.losses.reduce`.

    Raises:
        LimbeckError: masks of another shape than [B, K], or a temperature that is not positive.
    """
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}; it must be above 0")
    for name, mask in (("family", family), ("candidates", candidates)):
        if mask is not None and mask.shape != (len(anchors), len(pool)):
            raise LimbeckError(
                f"{name} has shape {list(mask.shape)}; {len(anchors)} anchors and a pool of {len(pool)} need "
                f"{[len(anchors), len(pool)]}"
            )
    similarity = products(direction(in_full(anchors)), direction(in_full(pool))) / temperature
    size = family.sum(-1)
    if candidates is not None:
        # A row that is masked throughout would have a gradient of NaN, even where its value is not used.
        similarity = similarity.masked_fill(~candidates & (size > 0)[:, None], -torch.inf)
    log_p = similarity.log_softmax(-1).masked_fill(~family, 0.0)
    return reduce(-log_p.sum(-1) / size.clamp(min=1), weight, reduction)
