"""Kernel ridge regression that learns from its own predictions, in closed form.

Source: Borup, Andersen, "Even your Teacher Needs Guidance", arXiv 2102.13088 (NeurIPS 2021); the formulas are
re-derived. With the Gram matrix K of n points, targets Y and a penalty lambda, step t = 1, 2 ... fits the mixed target

    M_t = alpha_t Y + (1 - alpha_t) Y_{t-1},    Y_0 = Y,    Y_t = K (K + lambda I)^-1 M_t.

A fit is given by its coefficients [n, q]: at points z it predicts ``k(z, x) @ coefficients``, on the training points
``K @ coefficients``. Everything is computed in the precision of the Gram matrix: use float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import LimbeckError


def rbf_kernel(x: Tensor, z: Tensor, gamma: float) -> Tensor:
    """``exp(-gamma ||x_i - z_j||^2)``, [n, m], of points x [n, d] and z [m, d]."""
    return (-gamma * (x[:, None] - z).square().sum(-1)).exp()


def ridge(gram: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Coefficients ``(K + lambda I)^-1 Y`` [n, q] of the minimum of ``||f(X) - Y||^2 / 2 + lambda / 2 ||f||^2``.

    Args:
        gram: K [n, n], symmetric and positive semi-definite.
        targets: Y [n, q].
        penalty: lambda > 0.

    Raises:
        LimbeckError: sizes that do not fit, or a penalty that is not positive.
    """
    _check(gram, targets, penalty)
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), targets)


def distilled_ridge(gram: Tensor, targets: Tensor, penalty: float, alphas: Sequence[float]) -> Tensor:
    """Coefficients [steps, n, q] of every step of self-distillation, by one eigendecomposition and no refit.

    Args:
        gram: K [n, n].
        targets: Y [n, q], the ground truth.
        penalty: lambda > 0.
        alphas: weight of the ground truth in each step; the first step does not depend on it.

    Raises:
        LimbeckError: sizes that do not fit, no steps, or numbers out of range.
    """
    _check(gram, targets, penalty)
    values, vectors = _eigen(gram)
    shrinkage = distilled_shrinkage(values, penalty, alphas)
    # The prediction is V B V^T Y, and d / (d + lambda) of it is the matrix K: what is left are the coefficients.
    past = torch.cat([torch.ones_like(shrinkage[:1]), shrinkage[:-1]])
    weights = torch.tensor(list(alphas), dtype=past.dtype, device=past.device)[:, None]
    scale = ((1 - weights) * past + weights) / (values + penalty)
    return vectors @ (scale[..., None] * (vectors.T @ targets))


def distilled_shrinkage(eigenvalues: Tensor, penalty: float, alphas: Sequence[float]) -> Tensor:
    """What is left of the targets in each eigendirection: the diagonals B_t [steps, n] of ``Y_t = V B_t V^T Y``.

    ``B_1 = a`` and ``B_t = a ((1 - alpha_t) B_{t-1} + alpha_t)`` with ``a = d / (d + lambda)``.

    Args:
        eigenvalues: d >= 0, [n].
        penalty: lambda > 0.
        alphas: weight of the ground truth in each step.

    Raises:
        LimbeckError: no steps, or numbers out of range.
    """
    if not penalty > 0:
        raise LimbeckError(f"penalty is {penalty}; it must be above 0")
    if not alphas:
        raise LimbeckError("alphas names no step: give one weight of the ground truth a step")
    kept = eigenvalues / (eigenvalues + penalty)
    left, steps = torch.ones_like(kept), []
    for alpha in alphas:
        _check_alpha(alpha)
        left = kept * ((1 - alpha) * left + alpha)
        steps.append(left)
    return torch.stack(steps)


def distilled_ridge_limit(gram: Tensor, targets: Tensor, penalty: float, alpha: float) -> Tensor:
    """Coefficients [n, q] after endlessly many steps: ``alpha (alpha K + lambda I)^-1 Y``.

    Ridge regression with the larger penalty lambda / alpha; without ground truth (alpha 0) the zero function.

    Raises:
        LimbeckError: sizes that do not fit, or numbers out of range.
    """
    _check_alpha(alpha)
    if alpha == 0:
        _check(gram, targets, penalty)
        return torch.zeros_like(targets)
    return ridge(gram, targets, penalty / alpha)


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(gram)
    return values.clamp(min=0), vectors  # rounding makes small ones negative


def _check(gram: Tensor, targets: Tensor, penalty: float) -> None:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or targets.ndim != 2 or len(targets) != len(gram):
        raise LimbeckError(
            f"a Gram matrix {list(gram.shape)} and targets {list(targets.shape)} do not fit: "
            "they must be [n, n] and [n, q]"
        )
    if not penalty > 0:
        raise LimbeckError(f"penalty is {penalty}; it must be above 0")


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise LimbeckError(f"alpha is {alpha}; it must lie between 0 and 1")
