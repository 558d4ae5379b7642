"""Several models as one teacher."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier, ClassifierOutput
from limbeck.teachers.frozen import Frozen


def prior_weights(priors: Sequence[float], temperature: float) -> list[float]:
    """Weights by how well each model is known to do: ``softmax(priors / temperature)`` (CV-DD, arXiv 2501.07575).

    Args:
        priors: One number a model, the larger the better; CV-DD's are accuracies in per cent.
        temperature: > 0; the higher, the more equal the weights.

    Returns:
        One weight a model, of sum 1.

    Raises:
        LimbeckError: no priors, one that is not finite, or a temperature that is not positive.
    """
    if not temperature > 0:
        raise LimbeckError(f"temperature of the priors is {temperature}; it must be above 0")
    if not priors or not all(math.isfinite(prior) for prior in priors):
        raise LimbeckError(f"priors must be finite numbers, one a model; got {list(priors)}")
    powers = [math.exp((prior - max(priors)) / temperature) for prior in priors]
    return [power / sum(powers) for power in powers]


class Ensemble(nn.Module):
    """The (weighted) mean of several frozen classifiers.

    Args:
        models: The members: classifiers, or teachers such as
            :class:`~limbeck.teachers.batch_statistics.BatchStatistics`. Their classes are matched by name to those
            of the first.
        weights: One number >= 0 a member, brought to sum 1. Default: all equal.
        average: "probabilities" (the predictive mixture: logits are the log of the mean probability) or
            "logits" (the geometric mean, up to its normalisation).

    Attributes:
        classes: Classes of the first member, the order of the logits.

    Raises:
        LimbeckError: no members, weights that do not fit, or a member that lacks a class.
    """

    def __init__(
        self,
        models: Sequence[Classifier | Frozen],
        weights: Sequence[float] | None = None,
        average: Literal["probabilities", "logits"] = "probabilities",
    ) -> None:
        super().__init__()
        if not models:
            raise LimbeckError("an ensemble needs at least one model")
        if average not in ("probabilities", "logits"):
            raise LimbeckError(f"average must be 'probabilities' or 'logits', got {average!r}")
        shares = [1.0] * len(models) if weights is None else [float(weight) for weight in weights]
        fits = len(shares) == len(models) and min(shares) >= 0 and math.isfinite(sum(shares))
        if not fits or sum(shares) == 0:
            raise LimbeckError(f"weights must be {len(models)} numbers >= 0, one a model, and not all 0; got {shares}")
        first = models[0].classes
        if first is None:
            raise LimbeckError("member 0 of the ensemble does not name its classes")
        self.classes: tuple[str, ...] = first
        self.members = nn.ModuleList(_member(models, place, self.classes) for place in range(len(models)))
        self.weights = [share / sum(shares) for share in shares]
        self.average = average

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> ClassifierOutput:
        """Mean logits, float32 ``[B, C]``; no features, as the members' differ."""
        weighted = [(w, m) for w, m in zip(self.weights, self.members, strict=True) if w > 0]
        logits = [(weight, member(batch).logits.float()) for weight, member in weighted]
        if self.average == "logits":
            return ClassifierOutput(torch.stack([weight * z for weight, z in logits]).sum(dim=0), None)
        log_probs = [math.log(weight) + torch.log_softmax(z, dim=-1) for weight, z in logits]
        return ClassifierOutput(torch.logsumexp(torch.stack(log_probs), dim=0), None)


def _member(models: Sequence[Classifier | Frozen], place: int, classes: tuple[str, ...]) -> Frozen:
    try:
        return Frozen(models[place], classes)
    except LimbeckError as error:
        raise LimbeckError(f"member {place} of the ensemble does not fit member 0: {error}") from None
