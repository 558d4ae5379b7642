"""Which way a KL should point, sample by sample: by who of student and teacher is surer of itself."""

from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import LimbeckError, nearest
from limbeck.labels.types import TopK
from limbeck.losses.entropy import entropy
from limbeck.losses.support import Logits, Tail, on_one_support

Direction: TypeAlias = Literal["balancing", "reversed"]
DIRECTIONS = ("balancing", "reversed")

_ROUNDING = 16
"""Units in the last place of 1 + H_t + H_s by which entropies can differ that are equal."""


class DivergenceWeights(NamedTuple):
    """What the two divergences of each sample count.

    Attributes:
        forward: weight of ``KL(p || q)``, [*batch], without gradient.
        reverse: weight of ``KL(q || p)``, [*batch], without gradient.
    """

    forward: Float[Tensor, "*batch"]
    reverse: Float[Tensor, "*batch"]


def entropy_gap_weights(
    student: Logits,
    teacher: Logits | TopK,
    *,
    delta: float | int = 2.0,
    direction: str = "balancing",
    temperature: float | int = 1.0,
    tail: Tail = "bucket",
) -> DivergenceWeights:
    """Weights that stress the divergence which closes the gap of the entropies (BD-KD, arXiv 2212.12965).

    With the entropies H_t of p = softmax(teacher / T) and H_s of q = softmax(student / T), sample by sample:

        H_t > H_s (the student is the surer one):  (delta, 1), the forward KL makes it broader
        H_t < H_s (the teacher is the surer one):  (1, delta), the reverse KL makes it sharper
        H_t = H_s:                                 (1, 1).

    Both comparisons are strict, but a gap below 16 times the rounding of 1 + H_t + H_s is none (a choice): equal
    entropies are equal in any order of the classes, and two predictions without doubt are equally sure. The direction
    is derived from what the two divergences do, and a third party's re-implementation has the same one;
    ``"reversed"`` swaps the first two rows. delta = 1 makes the sum of the weighted divergences that of Jeffreys.

    Args:
        student: logits [*batch, C].
        teacher: see :mod:`limbeck.losses.divergence`.
        delta: weight of the divergence that is stressed, at least 1.
        direction: ``"balancing"``, the rule above, or ``"reversed"``.
        temperature: T, of the entropies.
        tail: see :func:`limbeck.losses.support.on_one_support`.

    Raises:
        LimbeckError: delta below 1, or an unknown direction.
    """
    if not delta >= 1:
        raise LimbeckError(f"delta is {delta}; it must be at least 1: it stresses one of the two divergences")
    if direction not in DIRECTIONS:
        raise LimbeckError(f"direction is {direction!r}, must be one of {DIRECTIONS}.{nearest(direction, DIRECTIONS)}")
    with torch.no_grad():
        log_q, log_p = on_one_support(student, teacher, temperature, tail)
        of_teacher, of_student = entropy(log_p, reduction="none"), entropy(log_q, reduction="none")
        gap = of_teacher - of_student if direction == "balancing" else of_student - of_teacher
        rounding = _ROUNDING * torch.finfo(gap.dtype).eps * (1 + of_teacher + of_student)
        one, stressed = torch.ones_like(gap), torch.full_like(gap, delta)
        return DivergenceWeights(
            torch.where(gap > rounding, stressed, one), torch.where(gap < -rounding, stressed, one)
        )
