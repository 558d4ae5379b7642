"""Losses of two players: a discriminator tells real from generated, a generator makes it err.

Logits [*batch] > 0 mean real. Half precision is computed in float32.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.losses.reduction import Loss, Reduction, Weight, in_full, reduce

Logit = Float[Tensor, "*batch"]
TwoLogits = Float[Tensor, "*batch 2"]


def non_saturating_generator(fake: Logit, *, weight: Weight | None = None, reduction: Reduction = "mean") -> Loss:
    """``-log sigmoid(fake) = softplus(-fake)`` (arXiv 1406.2661, section 3, in the form that does not saturate).

    Args:
        fake: logits of generated samples.
        weight: what a sample counts.
        reduction: as :func:`limbeck.losses.reduce`.
    """
    return reduce(F.softplus(-in_full(fake)), weight, reduction)


def non_saturating_discriminator(
    real: Logit, fake: Logit, *, weight: Weight | None = None, reduction: Reduction = "mean"
) -> Loss:
    """``softplus(fake) + softplus(-real)`` (arXiv 1406.2661, equation 1); 2 ln 2 for one that tells nothing.

    Args:
        real: logits of real samples.
        fake: logits of as many generated ones.
        weight: what a pair counts.
        reduction: as :func:`limbeck.losses.reduce`.
    """
    return reduce(F.softplus(in_full(fake)) + F.softplus(-in_full(real)), weight, reduction)


def student_teacher_discriminator(
    student: TwoLogits, teacher: TwoLogits, *, weight: Weight | None = None, reduction: Reduction = "mean"
) -> Loss:
    """Binary cross-entropy of two logits, "is the student's" and "is the teacher's" (MEAL V2, arXiv 2009.08453).

    Targets are [1, 0] for what the student said and [0, 1] for what the teacher said; of each pair the mean over its
    four logits. ln 2 for a discriminator that tells nothing.

    Args:
        student: what the discriminator says of the student's outputs, [*batch, 2].
        teacher: what it says of the teacher's outputs for the same samples, [*batch, 2].
        weight: what a pair counts.
        reduction: as :func:`limbeck.losses.reduce`.
    """
    student, teacher = in_full(student), in_full(teacher)
    right = F.softplus(-student[..., 0]) + F.softplus(-teacher[..., 1])
    wrong = F.softplus(student[..., 1]) + F.softplus(teacher[..., 0])
    return reduce((right + wrong) / 4, weight, reduction)


def reverse_gradient(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same values; their gradient comes back with the opposite sign (arXiv 1409.7495, section 3.1)."""
    # x - (x - x) is x exactly, also under torch.compile, which knows no autograd functions of one's own.
    return values.detach() - (values - values.detach())


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Float[Tensor, "batch ..."],
    fake: Float[Tensor, "batch ..."],
    share: Float[Tensor, " batch"],
    *,
    reduction: Reduction = "mean",
) -> Loss:
    """``(|grad_x D(x)| - 1)^2`` at ``x = a real + (1 - a) fake`` (WGAN-GP, arXiv 1704.00028, equation 3).

    The norm is that of a whole sample; of a map of scores (PatchGAN) D is their sum. No gradient goes to ``real`` and
    ``fake``.

    Args:
        critic: samples to scores, each of its own sample only: [B, ...] of any further dimensions.
        real: [B, ...].
        fake: as many.
        share: a, [B], drawn uniformly from [0, 1].
        reduction: over samples.
    """
    a = share.reshape(-1, *[1] * (real.ndim - 1)).to(real)
    between = (a * real + (1 - a) * fake).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # Not vector_norm, whose second derivative is not a number where a dead critic has the slope 0.
    norm = (in_full(slope).flatten(1).square().sum(1) + 1e-12).sqrt()
    return reduce((norm - 1).square(), None, reduction)
