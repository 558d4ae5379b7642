"""Distributions between two others: targets on the way from student to teacher, answers between two heads."""

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


def interpolate_probabilities(
    first: Float[Tensor, "*batch classes"],
    second: Float[Tensor, "*batch classes"],
    alpha: Float[Tensor, ""],
    beta: Float[Tensor, ""],
) -> Float[Tensor, "*batch classes"]:
    """``log(alpha softmax(z_1) + (1 - alpha) softmax(z_2 / beta))``, the answer of two heads (DHO, arXiv 2505.07675).

    Args:
        first: logits z_1 [*batch, C]; half precision is computed in float32.
        second: logits z_2 [*batch, C].
        alpha: weight of the first, in [0, 1].
        beta: temperature of the second, > 0.

    Returns:
        Log-probabilities [*batch, C]: their softmax are the interpolated probabilities.
    """
    one, two = (z.float() if z.dtype in (torch.float16, torch.bfloat16) else z for z in (first, second))
    weights = torch.stack([alpha, 1 - alpha]).to(one).log()  # of a weight of 0 -inf, which takes no part
    parts = torch.stack([one.log_softmax(-1) + weights[0], (two / beta.to(two)).log_softmax(-1) + weights[1]])
    return parts.logsumexp(0)
