"""Losses on what lies before the logits: vectors, maps, and relations between the samples of a batch.

Student first; half precision is computed in float32, under autocast too. Directions of zero vectors are zero,
with a finite gradient. Nothing is detached.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Loss, Reduction, Weight, in_full, reduce


def mse(
    student: Float[Tensor, "*batch features"],
    teacher: Float[Tensor, "*batch features"],
    *,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """Mean squared difference over features (FitNets' hints, arXiv 1412.6550; DistillKit ``hs_mse``).

    Args:
        student: [*batch, D] (maps: ``flatten(1)``).
        teacher: [*batch, D].
        weight: [*batch] >= 0, 0 = not used.
        reduction: of one value an entry, as :func:`limbeck.losses.reduce`.

    Raises:
        LimbeckError: shapes that differ.
    """
    student, teacher = _pair(student, teacher)
    return reduce((student - teacher).square().mean(-1), weight, reduction)


def cosine(
    student: Float[Tensor, "*batch features"],
    teacher: Float[Tensor, "*batch features"],
    *,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """``1 - cos(student, teacher)``, between 0 and 2; 1 where either is zero (DistillKit ``hs_cosine``).

    Arguments and errors as :func:`mse`.
    """
    student, teacher = _pair(student, teacher)
    return reduce(1 - (direction(student) * direction(teacher)).sum(-1), weight, reduction)


def normalized_mse(
    student: Float[Tensor, "*batch features"],
    teacher: Float[Tensor, "*batch features"],
    *,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """Mean squared difference of the L2-normalised vectors: ``2 (1 - cos) / D``.

    Arguments and errors as :func:`mse`.
    """
    student, teacher = _pair(student, teacher)
    return mse(direction(student), direction(teacher), weight=weight, reduction=reduction)


def attention_transfer(
    student: Float[Tensor, "batch student_channels student_height student_width"],
    teacher: Float[Tensor, "batch teacher_channels teacher_height teacher_width"],
    *,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> Loss:
    """Attention transfer (arXiv 1612.03928, equation 2, p = 2), as RepDistiller and mdistiller compute it.

    A map's attention is the mean over channels of its squares, flattened and L2-normalised; the loss is the
    mean squared difference of the two (the paper sums). The larger map is average-pooled to the smaller.

    Args:
        student: [B, c, h, w].
        teacher: [B, c', h', w'].
        weight: [B] >= 0, 0 = not used.
        reduction: of one value a sample, as :func:`limbeck.losses.reduce`.

    Raises:
        LimbeckError: batch sizes that differ, or neither map at least as large as the other on both sides.
    """
    _check_batch(student, teacher)
    student, teacher = in_full(student), in_full(teacher)
    height, width = min(tuple(student.shape[-2:]), tuple(teacher.shape[-2:]))
    if width > min(student.shape[-1], teacher.shape[-1]):
        raise LimbeckError(
            f"maps of {list(student.shape[-2:])} and {list(teacher.shape[-2:])}: "
            "one must be at least as large as the other on both sides"
        )

    def attention(maps: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(maps, (height, width)).square().mean(1).flatten(1)

    return normalized_mse(attention(student), attention(teacher), weight=weight, reduction=reduction)


def similarity_preserving(
    student: Float[Tensor, "batch ..."], teacher: Float[Tensor, "batch ..."]
) -> Float[Tensor, ""]:
    """Similarity preserving (arXiv 1907.09682, equations 1 to 4): ``||G_t - G_s||^2 / B^2``.

    ``G = F F^T`` of the flattened features [B, D], rows L2-normalised. Widths may differ.

    Raises:
        LimbeckError: batch sizes that differ.
    """
    _check_batch(student, teacher)

    def similarities(features: Tensor) -> Tensor:
        flat = in_full(features).flatten(1)
        return direction(products(flat, flat))

    return F.mse_loss(similarities(student), similarities(teacher))


def probabilistic_knowledge_transfer(
    student: Float[Tensor, "batch student_features"], teacher: Float[Tensor, "batch teacher_features"]
) -> Float[Tensor, ""]:
    """PKT (arXiv 1803.10837, equations 4 to 6, cosine kernel), with the constants of the released code.

    Cosines s become ``(s + 1) / 2``, rows are normalised to probabilities, and the loss is the mean over the
    B^2 entries of ``P_t log((P_t + 1e-7) / (P_s + 1e-7))``. Widths may differ.

    Raises:
        LimbeckError: batch sizes that differ.
    """
    _check_batch(student, teacher)

    def probabilities(features: Tensor) -> Tensor:
        directions = direction(in_full(features))
        # Rounding may take a cosine below -1.
        similarity = ((products(directions, directions) + 1) / 2).clamp(min=0)
        return similarity / similarity.sum(-1, keepdim=True)

    p_s, p_t = probabilities(student), probabilities(teacher)
    return (p_t * ((p_t + 1e-7) / (p_s + 1e-7)).log()).mean()


def rkd_distance(
    student: Float[Tensor, "batch student_features"], teacher: Float[Tensor, "batch teacher_features"]
) -> Float[Tensor, ""]:
    """RKD-D (arXiv 1904.05068, equations 5 to 7): smooth L1 between relative pairwise distances.

    Euclidean distances over their mean (of the positive ones), smooth L1 with beta 1, mean over all B^2
    entries, the zeros of the diagonal included. Usual factor 25. Widths may differ.

    Raises:
        LimbeckError: batch sizes that differ.
    """
    _check_batch(student, teacher)

    def relative(features: Tensor) -> Tensor:
        features = in_full(features)
        # The quick way through matrix products loses the digits of small distances.
        distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        mean = distances.sum() / (distances > 0).sum().clamp(min=1)
        return distances / torch.where(mean > 0, mean, 1.0)

    return F.smooth_l1_loss(relative(student), relative(teacher))


def rkd_angle(
    student: Float[Tensor, "batch student_features"], teacher: Float[Tensor, "batch teacher_features"]
) -> Float[Tensor, ""]:
    """RKD-A (arXiv 1904.05068, equations 8 and 9): smooth L1 between the angles of all triples.

    Cosines at vertex i of the directions to j and k, smooth L1 with beta 1, mean over all B^3 entries, the
    zeros of degenerate triples included. Usual factor 50. Takes B^2 D + B^3 numbers of memory. Widths may
    differ.

    Raises:
        LimbeckError: batch sizes that differ.
    """
    _check_batch(student, teacher)

    def angles(features: Tensor) -> Tensor:
        features = in_full(features)
        directions = direction(features.unsqueeze(0) - features.unsqueeze(1))
        return products(directions, directions)

    return F.smooth_l1_loss(angles(student), angles(teacher))


def direction(vectors: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
    """``v / ||v||``, and 0 for v = 0, where an epsilon in its place would give gradients of 1 / epsilon."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(norm > 0, norm, 1.0)


def products(
    rows: Float[Tensor, "*batch rows features"], columns: Float[Tensor, "*batch columns features"]
) -> Float[Tensor, "*batch rows columns"]:
    """All inner products; autocast would take them to half precision."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ columns.transpose(-1, -2)


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise LimbeckError(
            f"student features have shape {list(student.shape)} and teacher features {list(teacher.shape)}, "
            "must be the same: put a projection between them"
        )
    return in_full(student), in_full(teacher)


def _check_batch(student: Tensor, teacher: Tensor) -> None:
    if len(student) != len(teacher):
        raise LimbeckError(f"student has {len(student)} samples and teacher {len(teacher)}, must be the same")
