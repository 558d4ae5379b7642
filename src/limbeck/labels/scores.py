"""What is said of each sample of a training set before some are chosen: how hard it is, how informative."""

import math
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError, nearest
from limbeck.labels.assign.k_means import k_means
from limbeck.labels.types import one_hot

Gain: TypeAlias = Literal["margin", "entropy", "least_confidence"]
GAINS = ("margin", "entropy", "least_confidence")


def el2n(probabilities: Float[Tensor, "*batch classes"], labels: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """``||p - onehot(y)||_2``, in [0, sqrt(2)]: the length of the error vector (arXiv 2107.07075, definition 2.1).

    Args:
        probabilities: [*batch, C], of a network early in training.
        labels: the true classes [*batch].
    """
    return (probabilities - one_hot(labels, probabilities.shape[-1], probabilities.dtype)).norm(dim=-1)


def forgetting_step(past: Float[Tensor, "*batch 3"], correct: Bool[Tensor, "*batch"]) -> Float[Tensor, "*batch 3"]:
    """Count on: one more look at each sample (arXiv 1812.05159, algorithm 1).

    Args:
        past: whether it was right at the last look, how often it was forgotten (right, then wrong), whether it was ever
            right; zeros before the first look. [*batch, 3].
        correct: whether it is right now, [*batch].

    Returns:
        The three numbers after this look.
    """
    right = correct.to(past.dtype)
    was, events, ever = past.unbind(-1)
    return torch.stack([right, events + was * (1 - right), torch.maximum(ever, right)], dim=-1)


def forgetting_score(past: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """How often each sample was forgotten; infinite where it was never learnt (by convention of arXiv 1812.05159).

    Args:
        past: what :func:`forgetting_step` gave, [*batch, 3].
    """
    return torch.where(past[..., 2] > 0, past[..., 1], torch.inf)


def prototype_distance(
    features: Float[Tensor, "samples features"], clusters: int, seed: int
) -> Float[Tensor, " samples"]:
    """Cosine distance ``1 - cos`` of each sample to the nearest of its prototypes, the centres of k-means.

    Self-supervised prototypes (arXiv 2206.14486, section 6); the distance and unit length before the clustering are
    from memory of that paper.

    Args:
        features: [N, D], finite.
        clusters: k, at most N; the number of classes is the usual choice.
        seed: of the first centres.

    Raises:
        LimbeckError: more clusters than samples, or none.
    """
    unit = F.normalize(features.double().cpu(), dim=-1)
    centres = F.normalize(k_means(unit, clusters, seed).centres, dim=-1)
    return (1 - unit @ centres.T).amin(-1).clamp_min(0).to(features)


def informativeness(
    probabilities: Float[Tensor, "*batch classes"], by: str = "margin", floor: float | int = 1e-6
) -> Float[Tensor, "*batch"]:
    """What a sample's label would teach, judged by the student's own prediction; one positive number a sample.

    Args:
        probabilities: [*batch, C], C >= 2.
        by: "margin": ``1 - (p_1 - p_2)`` of the two most probable classes, in (0, 1]; "entropy": over its largest value
            ``ln C``; "least_confidence": ``1 - p_1``.
        floor: what is less counts as this, so that nothing has no value at all.

    Raises:
        LimbeckError: an unknown measure, or less than two classes.
    """
    if by not in GAINS:
        raise LimbeckError(f"unknown gain {by!r}.{nearest(by, GAINS)} Known: {', '.join(GAINS)}")
    classes = probabilities.shape[-1]
    if classes < 2:
        raise LimbeckError("with less than two classes there is nothing to ask")
    if by == "entropy":
        values = torch.special.entr(probabilities).sum(-1) / math.log(classes)
    elif by == "margin":
        first, second = probabilities.topk(2, dim=-1).values.unbind(-1)
        values = 1 - (first - second)
    else:
        values = 1 - probabilities.amax(-1)
    return values.clamp_min(floor)
