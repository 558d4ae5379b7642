"""Partial labels: which classes an entry may have, and what is believed of them."""

from jaxtyping import Bool, Float, Int
from torch import Tensor


def uniform_over(candidates: Bool[Tensor, "*batch classes"]) -> Float[Tensor, "*batch classes"]:
    """Equal probabilities of all candidate classes: what is believed at first (PiCO, arXiv 2201.08984, section 3).

    Args:
        candidates: the classes that each entry may have, at least one, [*batch, C].
    """
    counts = candidates.float()
    return counts / counts.sum(-1, keepdim=True)


def best_candidate(
    scores: Float[Tensor, "*batch classes"], candidates: Bool[Tensor, "*batch classes"]
) -> Int[Tensor, "*batch"]:
    """The candidate class of the highest score, int64 [*batch]; of equal ones the first.

    Args:
        scores: [*batch, C], probabilities or logits.
        candidates: the classes that each entry may have, at least one, [*batch, C].
    """
    return scores.masked_fill(~candidates, -float("inf")).argmax(-1)
