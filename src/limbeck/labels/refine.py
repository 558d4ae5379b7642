"""Labels made better before use: sharpened, mixed with the past, smoothed, aligned to a marginal."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.types import one_hot


def sharpen(
    probabilities: Float[Tensor, "*batch classes"], temperature: float | int
) -> Float[Tensor, "*batch classes"]:
    """``p_c^(1/T) / sum_j p_j^(1/T)`` (MixMatch, arXiv 1905.02249, equation 7); T < 1 sharpens.

    Args:
        probabilities: [*batch, C].
        temperature: T > 0.

    Raises:
        LimbeckError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}, must be above 0")
    # Relative to the largest, powers cannot all underflow.
    powers = (probabilities / probabilities.amax(-1, keepdim=True)) ** (1 / temperature)
    return powers / powers.sum(-1, keepdim=True)


def mix_with_past(
    labels: Int[Tensor, "*batch"] | Float[Tensor, "*batch classes"],
    past: Float[Tensor, "*batch classes"],
    alpha: float | int | Float[Tensor, ""] | Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch classes"]:
    """``(1 - alpha) y + alpha A``: the target of PS-KD (arXiv 2006.12000, equation 6).

    Args:
        labels: class indices [*batch], or y itself as probabilities [*batch, C].
        past: A, what the model said of the same samples before, probabilities [*batch, C]; half precision is
            computed in float32.
        alpha: how much the past is trusted, in [0, 1]; one number, or one a sample (0 for a sample that has
            no past yet).
    """
    past = past.float() if past.dtype in (torch.float16, torch.bfloat16) else past
    if not labels.is_floating_point():
        labels = one_hot(labels, past.shape[-1], past.dtype)
    if isinstance(alpha, Tensor):
        alpha = alpha.unsqueeze(-1)
    return (1 - alpha) * labels + alpha * past


def optimal_mix_weight(
    labels: Int[Tensor, "*batch"] | Float[Tensor, "*batch classes"],
    fitted: Float[Tensor, "*batch classes"],
    distilled: Float[Tensor, "*batch classes"],
) -> Float[Tensor, ""]:
    """The weight of the ground truth that gives self-distillation the least squared error on held-out data.

    ``alpha* = <y - v, u - v> / ||u - v||^2`` over all samples and classes, brought into [0, 1]: where a prediction is
    linear in the targets (kernel ridge regression) a step's is ``alpha u + (1 - alpha) v``. Re-derived from that
    linearity (arXiv 2102.13088 has a closed form too); for networks an estimate by analogy.

    Args:
        labels: y, class indices [*batch], or any real targets [*batch, C].
        fitted: u, predictions of what was fitted to the ground truth, [*batch, C].
        distilled: v, predictions of what was fitted to the last step's predictions alone, [*batch, C].

    Returns:
        Scalar in [0, 1]; 1 where u and v are the same and every weight would do.
    """
    if not labels.is_floating_point():
        labels = one_hot(labels, fitted.shape[-1], fitted.dtype)
    # Probabilities differ by little: in float32 the sums over many samples would lose digits.
    y, u, v = labels.double(), fitted.double(), distilled.double()
    along, squared = ((y - v) * (u - v)).sum(), (u - v).square().sum()
    return torch.where(squared > 0, along / squared.clamp_min(torch.finfo(torch.float64).tiny), 1.0).clamp(0, 1)


def smooth(probabilities: Float[Tensor, "*batch classes"], epsilon: float | int) -> Float[Tensor, "*batch classes"]:
    """``(1 - epsilon) p + epsilon / C`` (label smoothing, arXiv 1512.00567, section 7).

    Raises:
        LimbeckError: epsilon outside [0, 1].
    """
    if not 0 <= epsilon <= 1:
        raise LimbeckError(f"epsilon is {epsilon}, must be between 0 and 1")
    return (1 - epsilon) * probabilities + epsilon / probabilities.shape[-1]


def align_distribution(
    probabilities: Float[Tensor, "*batch classes"],
    predicted: Float[Tensor, " classes"],
    wanted: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, "*batch classes"]:
    """Distribution alignment: ``p_c (wanted_c + 1e-6) / (predicted_c + 1e-6)``, renormalised.

    ReMixMatch (arXiv 1911.09785, section 3.1), with the constants of USB's AdaMatch.

    Args:
        probabilities: [*batch, C].
        predicted: the model's own marginal over classes (a running mean of its predictions), [C].
        wanted: the marginal it should have, [C]; uniform when None.
    """
    # The same wanted share for every class cancels.
    factor = predicted + 1e-6 if wanted is None else (predicted + 1e-6) / (wanted + 1e-6)
    aligned = probabilities / factor
    return aligned / aligned.sum(-1, keepdim=True)
