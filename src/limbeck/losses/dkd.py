"""Decoupled knowledge distillation."""

import torch
from jaxtyping import Int
from torch import Tensor

from limbeck.losses.divergence import forward_kl
from limbeck.losses.reduction import Loss, Reduction, Weight, read_labels, reduce
from limbeck.losses.support import Logits, log_probabilities


def dkd(
    student: Logits,
    teacher: Logits,
    labels: Int[Tensor, "*batch"],
    *,
    alpha: float | int = 1.0,
    beta: float | int = 8.0,
    temperature: float | int = 1.0,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``alpha TCKD + beta NCKD`` (arXiv 2203.08526, equation 7).

    TCKD is the KL between the two-class distributions (the label, everything else), NCKD the KL between the
    distributions over the other classes. With ``alpha = 1`` and ``beta = 1 - p_y`` it is the forward KL
    (equation 6). As everywhere here no T^2, which the released code has.

    Args:
        student: logits [*batch, C].
        teacher: logits or log-probabilities [*batch, C].
        labels: class indices [*batch]; where the weight is 0 they are not read.
        alpha: weight of the target class's part (1 in the paper).
        beta: weight of the other classes' part (8 on CIFAR-100 with most teachers; 0.5 for language models in TAID's
            released code).
        temperature: T > 0, on both sides.
        weight: [*batch] >= 0.
        reduction: as of :mod:`limbeck.losses.divergence`.
    """
    target = read_labels(labels, weight).unsqueeze(-1)

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of (label, others together), and logits in which the label is excluded."""
        log_probs = log_probabilities(logits, temperature)
        others = log_probs.scatter(-1, target, -torch.inf)
        return torch.cat([log_probs.gather(-1, target), others.logsumexp(-1, keepdim=True)], dim=-1), others

    student_pair, student_others = parts(student)
    teacher_pair, teacher_others = parts(teacher)
    tckd = forward_kl(student_pair, teacher_pair, reduction="none")
    nckd = forward_kl(student_others, teacher_others, reduction="none")
    return reduce(alpha * tckd + beta * nckd, weight, reduction)
