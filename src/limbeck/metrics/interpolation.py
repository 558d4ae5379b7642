"""How two heads answer together best: two numbers chosen on labelled samples that neither was trained on."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.interpolate import interpolate_probabilities

ALPHAS = tuple(number / 20 for number in range(21))
BETAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)


class Interpolation(NamedTuple):
    """What :func:`search_pair` chooses.

    Attributes:
        alpha: weight of one of the two.
        beta: temperature or sharpness of the other.
        accuracy: of both together, on the samples they were chosen on.
    """

    alpha: float
    beta: float
    accuracy: float


def search_pair(
    answer: Callable[[float], Callable[[float], Float[Tensor, "samples classes"]]],
    labels: Int[Tensor, " samples"],
    alphas: Sequence[float],
    betas: Sequence[float],
) -> Interpolation:
    """The (alpha, beta) of a grid with the highest accuracy; of equally good pairs the first, beta by beta.

    Args:
        answer: ``answer(beta)(alpha)`` are logits [N, C].
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
        of_alpha = answer(beta)
        for alpha in alphas:
            accuracy = float((of_alpha(alpha).argmax(-1) == labels).double().mean())
            if best is None or accuracy > best.accuracy:
                best = Interpolation(float(alpha), float(beta), accuracy)
    assert best is not None
    return best


def search_interpolation(
    first: Float[Tensor, "samples classes"],
    second: Float[Tensor, "samples classes"],
    labels: Int[Tensor, " samples"],
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
) -> Interpolation:
    """The best (alpha, beta) of two heads' interpolated probabilities (DHO, arXiv 2505.07675, released few-shot code).

    Of equally good pairs that with the smallest beta is taken, then that with the smallest alpha, as there.

    Args:
        first: logits [N, C] of the head with the weight alpha.
        second: logits [N, C] of the head with the temperature beta.
        labels: true classes [N].
        alphas: tried, in this order.
        betas: tried, in this order.

    Raises:
        LimbeckError: as of :func:`search_pair`.
    """

    def answer(beta: float) -> Callable[[float], Tensor]:
        temperature = torch.tensor(float(beta))
        return lambda alpha: interpolate_probabilities(first, second, torch.tensor(float(alpha)), temperature)

    return search_pair(answer, labels, alphas, betas)
