"""Labels from the nearest labelled sample of each class, in somebody's representation."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.labels.types import Labels

PAIRS = 1 << 24
"""Cosines in memory at a time."""


def class_similarity(
    features: Float[Tensor, "samples features"],
    anchors: Float[Tensor, "anchors features"],
    classes: Int[Tensor, " anchors"],
    num_classes: int,
) -> Float[Tensor, "samples classes"]:
    """``s_k(u) = max over the labelled x of class k of cos(z(u), z(x))`` (WAD, arXiv 2308.11874).

    Args:
        features: z(u), [N, D]; the length of a vector does not count.
        anchors: z(x), [M, D].
        classes: of the anchors, [M] in [0, K).
        num_classes: K.

    Returns:
        [N, K] in [-1, 1]; another anchor can only raise it.

    Raises:
        LimbeckError: a class without anchors.
    """
    missing = [number for number in range(num_classes) if not (classes == number).any()]
    if missing:
        raise LimbeckError(f"the classes number {missing} (from 0) have no labelled sample to be near to")
    directions = F.normalize(anchors, dim=-1)
    found = []
    for part in features.split(max(1, PAIRS // len(anchors))):
        cosines = (F.normalize(part, dim=-1) @ directions.T).clamp(-1, 1)
        best = cosines.new_full((len(part), num_classes), -1.0)
        found.append(best.scatter_reduce(1, classes.expand(len(part), -1), cosines, "amax"))
    return torch.cat(found) if found else features.new_zeros(0, num_classes)


def nearest_class(similarity: Float[Tensor, "*batch classes"]) -> Labels:
    """The most similar class, weighted by how much the second is less similar: ``w = s_(1) (1 - s_(2) / s_(1))``.

    WAD's point-mutual-information weight (arXiv 2308.11874, as its released code computes it) is ``s_(1) - s_(2)``,
    whatever their signs: 0 between two equally near classes, 2 at most.

    Args:
        similarity: [*batch, K], K >= 2.

    Returns:
        Class indices [*batch] with weights [*batch] >= 0.

    Raises:
        LimbeckError: a single class, which has no second.
    """
    if similarity.shape[-1] < 2:
        raise LimbeckError("a margin between classes needs at least two of them")
    best, classes = similarity.topk(2, dim=-1)
    return Labels(classes[..., 0], best[..., 0] - best[..., 1])
