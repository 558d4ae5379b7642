"""Several models as one teacher."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier
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


def power_weights(scores: Sequence[float], p: float) -> list[float]:
    """Weights ``max(e_s, 0)^p / sum_j max(e_j, 0)^p`` (DistillWeighted, arXiv 2304.12314, section 3).

    Args:
        scores: e, one number a model, the larger the better.
        p: >= 0. With 0 all weights are equal; with infinity the model with the highest score (of several the first)
            has all the weight, whatever its sign (DistillNearest).

    Returns:
        One weight a model, of sum 1; all equal where no score is above 0 and p is finite.

    Raises:
        LimbeckError: no scores, one that is not finite, or a power below 0.
    """
    if not p >= 0:
        raise LimbeckError(f"p is {p}; it must be a number from 0 on, or infinity")
    if not scores or not all(math.isfinite(score) for score in scores):
        raise LimbeckError(f"scores must be finite numbers, one a model; got {list(scores)}")
    best = max(scores)
    if math.isinf(p):
        return [float(place == list(scores).index(best)) for place in range(len(scores))]
    if best <= 0:
        return [1 / len(scores)] * len(scores)
    powers = [(max(score, 0.0) / best) ** p for score in scores]
    return [power / sum(powers) for power in powers]


class EnsembleOutput(NamedTuple):
    """What an ensemble returns, of one pass through its members.

    Attributes:
        logits: float32 ``[B, C]``, one of the two means, as the ensemble's ``average`` says.
        features: None, as the members' differ.
        log_probabilities: float32 ``[B, C]``, log of the mean of the members' softmaxes.
        mean_logits: float32 ``[B, C]``, mean of the members' logits.
    """

    logits: Tensor
    features: None
    log_probabilities: Tensor
    mean_logits: Tensor


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
    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> EnsembleOutput:
        """Both means of the members' outputs."""
        weighted = [(w, m) for w, m in zip(self.weights, self.members, strict=True) if w > 0]
        outputs = [(weight, member(batch).logits.float()) for weight, member in weighted]
        logits = torch.stack([weight * z for weight, z in outputs]).sum(dim=0)
        log_probs = [math.log(weight) + torch.log_softmax(z, dim=-1) for weight, z in outputs]
        mixture = torch.logsumexp(torch.stack(log_probs), dim=0)
        return EnsembleOutput(logits if self.average == "logits" else mixture, None, mixture, logits)


def _member(models: Sequence[Classifier | Frozen], place: int, classes: tuple[str, ...]) -> Frozen:
    try:
        return Frozen(models[place], classes)
    except LimbeckError as error:
        raise LimbeckError(f"member {place} of the ensemble does not fit member 0: {error}") from None
