"""How well predicted similarities agree with those that people gave: rank and linear correlation, AUC."""

from collections.abc import Mapping

import scipy.stats
import sklearn.metrics
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import LimbeckError

Scores = Float[Tensor, " pairs"]
Gold = Float[Tensor, " golds"]
"""As many as there are scores; of another name, so that a wrong number meets the message below."""


def spearman(scores: Scores, gold: Gold) -> float:
    """Spearman's rank correlation, between -1 and 1; ties get the mean of their ranks.

    Constant scores rank nothing: 0.

    Args:
        scores: predicted, [N].
        gold: true, [N]; any monotone scale.

    Raises:
        LimbeckError: fewer than two pairs, numbers that are not finite, or gold scores that are all equal.
    """
    _check(scores, gold)
    if _constant(scores):
        return 0.0
    return float(scipy.stats.spearmanr(scores.double().cpu().numpy(), gold.double().cpu().numpy()).statistic)


def pearson(scores: Scores, gold: Gold) -> float:
    """Pearson's linear correlation, between -1 and 1; 0 for constant scores. Arguments and errors as Spearman's."""
    _check(scores, gold)
    if _constant(scores):
        return 0.0
    x, y = scores.double(), gold.double()
    # Scaled first: the squares of small deviations from a large mean must neither vanish nor overflow.
    x, y = x - x.mean(), y - y.mean()
    x, y = x / x.abs().max(), y / y.abs().max()
    return float((x @ y / (x.norm() * y.norm())).clamp(-1, 1))


def auc(scores: Scores, gold: Gold) -> float:
    """Area under the ROC curve: the chance that a pair of gold 1 scores above one of gold 0, ties counting half.

    Args:
        scores: predicted, [N].
        gold: 0 or 1, [N], both of them present.

    Raises:
        LimbeckError: as :func:`spearman`, or gold scores other than 0 and 1.
    """
    _check(scores, gold)
    if not is_binary(gold):
        raise LimbeckError("the AUC needs gold scores 0 and 1; these have other values: use spearman")
    return float(sklearn.metrics.roc_auc_score(gold.long().cpu().numpy(), scores.double().cpu().numpy()))


def is_binary(gold: Gold) -> bool:
    """Whether the gold scores are 0 and 1 only."""
    return bool(((gold == 0) | (gold == 1)).all())


def summary(scores: Scores, gold: Gold) -> dict[str, float]:
    """``spearman`` and ``pearson``, and ``auc`` where the gold scores are binary."""
    found = {"spearman": spearman(scores, gold), "pearson": pearson(scores, gold)}
    if is_binary(gold):
        found["auc"] = auc(scores, gold)
    return found


def headline(metrics: Mapping[str, float]) -> float:
    """The metric by which models are chosen: the AUC of a binary task, else Spearman's correlation."""
    return metrics.get("auc", metrics["spearman"])


def _check(scores: Tensor, gold: Tensor) -> None:
    if len(scores) != len(gold):
        raise LimbeckError(f"there are {len(scores)} predicted and {len(gold)} gold scores: give one of each a pair")
    if len(scores) < 2:
        raise LimbeckError(f"a correlation needs at least two pairs, got {len(scores)}")
    for name, values in (("predicted", scores), ("gold", gold)):
        broken = ~values.isfinite()
        if broken.any():
            raise LimbeckError(
                f"{int(broken.sum())} of {len(values)} {name} scores are NaN or infinite, first row "
                f"{int(broken.nonzero()[0])}"
            )
    if _constant(gold):
        raise LimbeckError(f"all {len(gold)} gold scores are {float(gold[0])}: nothing can correlate with them")


def _constant(values: Scores) -> bool:
    return bool((values == values[0]).all())
