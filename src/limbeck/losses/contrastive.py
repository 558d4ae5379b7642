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
