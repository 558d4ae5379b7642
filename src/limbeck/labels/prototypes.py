"""Prototypes: one direction a class, moved towards the vectors of what is taken for that class."""

from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.types import one_hot
from limbeck.losses.feature import direction, products


def prototype_probabilities(
    vectors: Float[Tensor, "batch features"], prototypes: Float[Tensor, "classes features"]
) -> Float[Tensor, "batch classes"]:
    """``softmax(v . mu_c)`` over classes, without a temperature (PiCO, arXiv 2201.08984; INS, arXiv 2307.02249).

    Args:
        vectors: [B, D].
        prototypes: [C, D]; where all are zero nothing is told apart.
    """
    return products(vectors, prototypes).softmax(-1)


def move_prototypes(
    prototypes: Float[Tensor, "classes features"],
    vectors: Float[Tensor, "batch features"],
    labels: Int[Tensor, " batch"],
    momentum: float | int,
) -> Float[Tensor, "classes features"]:
    """``mu_l <- beta mu_l + (1 - beta) v``, vector after vector, then every prototype brought to length 1.

    PiCO (arXiv 2201.08984, equation 6), which normalises once a batch. Of a class's n vectors in the batch the j-th
    counts ``beta^(n - j) (1 - beta)``, so no loop is needed. A class that has met no vector yet stays 0.

    Args:
        prototypes: mu, [C, D].
        vectors: [B, D], in their order.
        labels: which prototype each vector moves, [B] in [0, C).
        momentum: beta in [0, 1].

    Raises:
        LimbeckError: a momentum out of range.
    """
    if not 0 <= momentum <= 1:
        raise LimbeckError(f"the momentum of prototypes is {momentum}; it must lie between 0 and 1")
    members = one_hot(labels, len(prototypes), prototypes.dtype)
    later = members.sum(0) - members.cumsum(0)
    # beta^0 is 1 for beta = 0 too: then the last vector of a class is its prototype.
    weights = members * (1 - momentum) * momentum**later
    return direction(momentum ** members.sum(0)[:, None] * prototypes + weights.T @ vectors)
