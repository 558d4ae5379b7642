"""What several networks say together."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.certainty import certainty


def confidence_vote(probabilities: Float[Tensor, "voters *batch classes"]) -> Float[Tensor, "*batch classes"]:
    """``1/M sum_m k_m p_m`` with the confidence ``k_m = 1 - H(p_m) / ln K`` of each sample (arXiv 2508.06429).

    A row sums to the mean confidence: 1 where all are certain, 0 where none knows anything.

    Args:
        probabilities: [M, *batch, K], of M voters.

    Raises:
        LimbeckError: fewer than two classes, where nothing is uncertain.
    """
    classes = probabilities.shape[-1]
    if classes < 2:
        raise LimbeckError(f"a vote weighed by entropy needs at least 2 classes, and there is {classes}")
    confidence = certainty(probabilities, "entropy") / math.log(classes)
    return torch.mean(confidence.unsqueeze(-1) * probabilities, 0)
