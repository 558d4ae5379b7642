"""Networks between two networks: linear combinations of their weights."""

import math

import torch
from torch import nn

from limbeck.errors import LimbeckError


def interpolate_parameters(
    model: nn.Module,
    other: nn.Module,
    alpha: float,
    *,
    variance_preserving: bool = True,
    only_matrices: bool = False,
) -> None:
    """``theta <- ((1 - alpha) theta + alpha theta') / delta``, in place (arXiv 2302.12091, section 4).

    With ``variance_preserving``, delta = sqrt(alpha^2 + (1 - alpha)^2) keeps the spread of weights that are drawn
    independently of each other, else it is 1. alpha 0 changes nothing, bit for bit; alpha 1 copies the other.

    Args:
        model: theta, a network; its buffers stay as they are.
        other: theta', of the same architecture; not changed.
        alpha: in [0, 1].
        variance_preserving: see above.
        only_matrices: divide weights of two or more dimensions only. As in the released code all are divided by
            default: equal biases and scales of both, such as the ones of a new normalisation, then become 1 / delta.

    Raises:
        LimbeckError: alpha out of range, or networks that do not have the same parameters.
    """
    if not 0 <= alpha <= 1:
        raise LimbeckError(f"alpha of the interpolation is {alpha}; it must lie between 0 and 1")
    delta = math.hypot(alpha, 1 - alpha) if variance_preserving else 1.0
    _combine(model, other, 1 - alpha, alpha, delta, only_matrices)


def perturb_parameters(model: nn.Module, other: nn.Module, epsilon: float, *, only_matrices: bool = False) -> None:
    """``theta <- (theta + epsilon theta') / sqrt(1 + epsilon^2)``, in place: a point in the neighbourhood of theta.

    Args:
        model: theta, a network; its buffers stay as they are.
        other: theta', of the same architecture; not changed.
        epsilon: >= 0.
        only_matrices: divide only weights of two or more dimensions by the root, others by 1 + epsilon, which leaves
            equal ones as they are.

    Raises:
        LimbeckError: a negative epsilon, or networks that do not have the same parameters.
    """
    if not epsilon >= 0:
        raise LimbeckError(f"epsilon of the neighbourhood is {epsilon}; it must be 0 or more")
    _combine(model, other, 1.0, epsilon, math.hypot(1, epsilon), only_matrices)


@torch.no_grad()
def _combine(model: nn.Module, other: nn.Module, own: float, others: float, delta: float, only_matrices: bool) -> None:
    mine, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    if {name: p.shape for name, p in mine.items()} != {name: p.shape for name, p in theirs.items()}:
        raise LimbeckError("the two networks do not have the same parameters: they must be of one architecture")
    for name, parameter in mine.items():
        scale = delta if parameter.ndim > 1 or not only_matrices else own + others
        parameter.copy_((own * parameter + others * theirs[name]) / scale)
