"""How well confidence ranks the errors: the risk of answering only the most confident samples."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.metrics.predictions import by_confidence

Logits = Float[Tensor, "samples classes"]
ClassIndices = Int[Tensor, " samples"]


def aurc(logits: Logits, labels: ClassIndices) -> float:
    """Area under the risk-coverage curve (arXiv 1805.08206): mean over k = 1..N of the error rate of the k
    samples with the largest maximum probability.

    Raw, in [0, 1] (often published x 1000). Within a tie of confidences the expectation over its orders.

    Args:
        logits: [N, C].
        labels: [N] in [0, C).

    Raises:
        LimbeckError: no samples, a label out of range, logits that are NaN or +inf.
    """  # noqa: D205
    return float(_mean_risk(1 - by_confidence(logits, labels).correct))


def e_aurc(logits: Logits, labels: ClassIndices) -> float:
    """Excess AURC: :func:`aurc` minus that of a perfect ranking with the same number of errors, >= 0.

    The optimum is the exact sum, not the approximation ``r + (1 - r) log(1 - r)`` of arXiv 1805.08206 that
    released code uses (the two differ by O(1 / N)).

    Raises:
        LimbeckError: as :func:`aurc`.
    """
    errors = 1 - by_confidence(logits, labels).correct
    # Averaged ties hold fractions of errors: the sum is a whole number up to rounding.
    optimal = torch.arange(len(errors), device=errors.device) >= len(errors) - errors.sum().round()
    return float((_mean_risk(errors) - _mean_risk(optimal.double())).clamp(min=0))


def _mean_risk(errors: Float[Tensor, " samples"]) -> Float[Tensor, ""]:
    answered = torch.arange(1, len(errors) + 1, dtype=errors.dtype, device=errors.device)
    return (errors.cumsum(0) / answered).mean()
