"""How two heads answer together best: weight and temperature chosen on labelled samples that neither was trained on."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.interpolate import interpolate_probabilities

ALPHAS = tuple(number / 20 for number in range(21))
BETAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)


class Interpolation(NamedTuple):
    """What :func:`search_interpolation` chooses.

    Attributes:
        alpha: weight of the first head.
        beta: temperature of the second.
        accuracy: of the two together, on the samples they were chosen on.
    """

    alpha: float
    beta: float
    accuracy: float


def search_interpolation(
    first: Float[Tensor, "samples classes"],
    second: Float[Tensor, "samples classes"],
    labels: Int[Tensor, " samples"],
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
) -> Interpolation:
    """The (alpha, beta) of the grid with the highest accuracy (DHO, arXiv 2505.07675, the released few-shot code).

    Of equally good pairs that with the smallest beta is taken, then that with the smallest alpha, as there.

    Args:
        first: logits [N, C] of the head with the weight alpha.
        second: logits [N, C] of the head with the temperature beta.
        labels: true classes [N].
        alphas: tried, in this order.
        betas: tried, in this order.

    Raises:
        LimbeckError: no samples, a sample without a label, or an empty grid.
    """
    if not len(labels) or (labels < 0).any():
        raise LimbeckError(f"{len(labels)} samples to choose alpha and beta on; all need a label, and one at least")
    if not alphas or not betas:
        raise LimbeckError("there is no alpha or no beta to choose from")
    best: Interpolation | None = None
    for beta in betas:
        for alpha in alphas:
            pair = (torch.tensor(float(alpha)), torch.tensor(float(beta)))
            right = interpolate_probabilities(first, second, *pair).argmax(-1) == labels
            accuracy = float(right.double().mean())
            if best is None or accuracy > best.accuracy:
                best = Interpolation(float(alpha), float(beta), accuracy)
    assert best is not None
    return best
