"""Targets on the way from what the student says to what the teacher says."""

import torch
from jaxtyping import Float
from torch import Tensor, inf


def interpolate(
    student: Float[Tensor, "*batch classes"],
    teacher: Float[Tensor, "*batch classes"],
    t: float | int | Float[Tensor, ""],
) -> Float[Tensor, "*batch classes"]:
    """``softmax((1 - t) z_s + t z_t)``: the normalised geometric mixture (TAID, arXiv 2501.16937, equation 2).

    Nothing is learnt through it: the student's logits are detached.

    Args:
        student: logits z_s [*batch, C]; half precision is computed in float32.
        teacher: logits z_t [*batch, C].
        t: 0 gives the student's own distribution, 1 the teacher's. A class that either side excludes (-inf) has
            probability 0 for any t.

    Returns:
        Probabilities [*batch, C], without gradient.
    """
    own, other = (
        z.detach().float() if z.dtype in (torch.float16, torch.bfloat16) else z.detach() for z in (student, teacher)
    )
    excluded = (own == -inf) | (other == -inf)
    return ((1 - t) * own + t * other).masked_fill(excluded, -inf).softmax(-1)
