"""Contrastive losses: a vector is told from the others of its batch."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.losses.feature import direction, products
from limbeck.losses.reduction import Loss, Reduction, Weight, in_full, reduce


def info_nce(
    queries: Float[Tensor, "batch features"],
    keys: Float[Tensor, "keys key_features"],
    *,
    temperature: float | int = 0.05,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """InfoNCE with the other keys of the batch as negatives (SimCSE, arXiv 2104.08821, equation 1).

    ``-log(exp(cos(q_i, k_i) / T) / sum_j exp(cos(q_i, k_j) / T))`` for every query i, in one direction: add the
    call with swapped arguments for the symmetric loss. The negatives are those of the batch that is passed, so
    the loss of a batch is not the mean of the losses of its parts.

    Args:
        queries: [B, D]; zero vectors have no direction and similarity 0 with everything.
        keys: [B, D]; key i belongs to query i.
        temperature: T > 0 (SimCSE: 0.05).
        weight: of each query, [B] >= 0; a query of weight 0 still gives its key as a negative.
        reduction: of one value a query, as :func:`limbeck.losses.reduce`.

    Raises:
        LimbeckError: shapes that differ, or a temperature that is not positive.
    """
    if queries.shape != keys.shape:
        raise LimbeckError(
            f"queries have shape {list(queries.shape)}, keys {list(keys.shape)}: give one key of the same size a query"
        )
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}; it must be above 0")
    similarity = products(direction(in_full(queries)), direction(in_full(keys)))
    own = torch.arange(len(queries), device=queries.device)
    return reduce(F.cross_entropy(similarity / temperature, own, reduction="none"), weight, reduction)


def nt_xent(
    first: Float[Tensor, "batch features"],
    second: Float[Tensor, "others other_features"],
    *,
    negatives: Float[Tensor, "negatives negative_features"] | None = None,
    temperature: float | int = 0.1,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """NT-Xent, the loss of SimCLR (arXiv 2002.05709, equation 1) as SimCLR v2 (arXiv 2006.10029) sums it.

    With a_i and b_i the two views of sample i, brought to length 1, and S(u) = exp(u / T):

        l_i = -log S(a_i b_i) / (sum_j S(a_i b_j) + sum_{j != i} S(a_i a_j))
              -log S(b_i a_i) / (sum_j S(b_i a_j) + sum_{j != i} S(b_i b_j)).

    The mean over i is the sum of both directions: twice SimCLR's mean over 2N views. All other views of the batch are
    negatives, so the loss of a batch is not the mean of the losses of its parts.

    Args:
        first: a, [B, D]; zero vectors have no direction and similarity 0 with everything.
        second: b, [B, D].
        negatives: further negatives of both directions, [M, D], such as a memory of an averaged network's outputs.
        temperature: T > 0 (0.1 on ImageNet, 0.5 on CIFAR-10).
        weight: of each sample, [B] >= 0; the views of a sample of weight 0 still are negatives of the others.
        reduction: of one value a sample, as :func:`limbeck.losses.reduce`.

    Raises:
        LimbeckError: shapes that differ, or a temperature that is not positive.
    """
    if first.shape != second.shape:
        raise LimbeckError(
            f"the first views have shape {list(first.shape)}, the second {list(second.shape)}: give two of each sample"
        )
    if negatives is not None and negatives.shape[1] != first.shape[1]:
        raise LimbeckError(f"negatives have {negatives.shape[1]} features, the views {first.shape[1]}: make them equal")
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}; it must be above 0")
    a, b = direction(in_full(first)), direction(in_full(second))
    others = [] if negatives is None else [direction(in_full(negatives))]
    own = torch.arange(len(a), device=a.device)
    itself = own[:, None] == own

    def one_direction(view: Tensor, partner: Tensor) -> Tensor:
        # Of finite logits at least the partner is left: minus infinity gives no NaN.
        within = products(view, view).masked_fill(itself, -torch.inf)
        logits = torch.cat([products(view, partner), within, *(products(view, more) for more in others)], dim=1)
        return F.cross_entropy(logits / temperature, own, reduction="none")

    return reduce(one_direction(a, b) + one_direction(b, a), weight, reduction)
