"""Teacher and student on one support: log-probabilities over the same entries, dense or top-k."""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError, nearest
from limbeck.labels.types import TopK
from limbeck.losses.reduction import in_full

Tail: TypeAlias = Literal["bucket", "renormalize", "zero"]
Logits: TypeAlias = Float[Tensor, "*batch classes"]
LogProbs: TypeAlias = Float[Tensor, "*batch entries"]


def log_probabilities(logits: Logits, temperature: float | int = 1.0) -> Logits:
    """``log softmax(logits / temperature)`` over the last dimension, half precision in float32.

    Raises:
        LimbeckError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}, must be above 0")
    logits = in_full(logits)
    return F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def on_one_support(
    student: Logits, teacher: Logits | TopK, temperature: float | int = 1.0, tail: Tail = "bucket"
) -> tuple[LogProbs, LogProbs]:
    """Log-probabilities (student's, teacher's) over the same entries.

    A dense teacher gives all C classes. A top-k teacher gives its k classes, and what is outside is treated
    by one of the conventions in use:

    - ``"bucket"`` (TRL's server teacher, DistillKit ``symmetric_uniform``): one more entry on both sides
      holds all the probability outside. At temperature 1, divergences never exceed the dense ones and grow
      with k. The student's entry is exact (log-sum-exp of its other logits, where TRL takes ``log(1 - sum)``).
      At a temperature T the teacher's entry becomes ``rest^(1/T)`` before renormalising, as in DistillKit,
      because how the rest was spread is not known.
    - ``"renormalize"`` (TRL without tail): both sides renormalised over the k classes.
    - ``"zero"`` (DistillKit ``missing=zero``): the teacher renormalised over the k classes and 0 outside, the
      student left as it is. Divergences that need p > 0 wherever q > 0 are infinite.

    With k = C nothing is outside and all three equal the dense divergence.

    Args:
        student: logits [*batch, C].
        teacher: logits or log-probabilities [*batch, C], or the top k at temperature 1.
        temperature: divides the logits, and the teacher's log-probabilities before renormalising.
        tail: convention for a top-k teacher.

    Raises:
        LimbeckError: temperature <= 0, shapes that differ, unknown tail.
    """
    if not isinstance(teacher, TopK):
        if teacher.shape != student.shape:
            raise LimbeckError(
                f"student has shape {list(student.shape)} and teacher {list(teacher.shape)}, must be the same"
            )
        return log_probabilities(student, temperature), log_probabilities(teacher, temperature)
    if teacher.indices.shape[:-1] != student.shape[:-1]:
        raise LimbeckError(
            f"student has shape {list(student.shape)} and top-k labels {list(teacher.indices.shape)}: "
            "all but the last must be the same"
        )
    student, inside = in_full(student), in_full(teacher.log_probs)
    gathered = student.gather(-1, teacher.indices)
    if tail == "renormalize" or teacher.indices.shape[-1] == student.shape[-1]:
        return log_probabilities(gathered, temperature), log_probabilities(inside, temperature)
    if tail == "bucket":
        outside = in_full(teacher.rest).log()
    elif tail == "zero":
        outside = torch.full_like(inside[..., 0], -torch.inf)
    else:
        known = ("bucket", "renormalize", "zero")
        raise LimbeckError(f"tail is {tail!r}, must be one of {known}.{nearest(tail, known)}")
    scaled = student / temperature
    others = scaled.scatter(-1, teacher.indices, -torch.inf).logsumexp(-1, keepdim=True)
    # The softmax of (k logits, log-sum-exp of the others) is the student's distribution, the others merged.
    merged = torch.cat([gathered / temperature, others], dim=-1)
    return log_probabilities(merged), log_probabilities(torch.cat([inside, outside.unsqueeze(-1)], dim=-1), temperature)
