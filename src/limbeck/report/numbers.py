"""How numbers are named and written: one place, so that a metric looks the same wherever it stands."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.metrics.intervals import student_interval

NOTHING = "\u2013"  # what stands in a cell without a number


@dataclass(frozen=True)
class Metric:
    """A metric's name for people, the way it is written and the direction that is better."""

    label: str
    style: str  # "percent" (of a fraction) | "decimal" | "count" | "ms"
    better: str  # "higher" | "lower"
    digits: int


METRICS = {
    "accuracy": Metric("Accuracy", "percent", "higher", 1),
    "top5_accuracy": Metric("Top-5 accuracy", "percent", "higher", 1),
    "accuracy_many": Metric("Accuracy, many-shot classes", "percent", "higher", 1),
    "accuracy_medium": Metric("Accuracy, medium-shot classes", "percent", "higher", 1),
    "accuracy_few": Metric("Accuracy, few-shot classes", "percent", "higher", 1),
    "nll": Metric("NLL", "decimal", "lower", 3),
    "brier": Metric("Brier score", "decimal", "lower", 3),
    "ece": Metric("ECE", "percent", "lower", 2),
    "adaptive_ece": Metric("Adaptive ECE", "percent", "lower", 2),
    "aurc": Metric("AURC", "decimal", "lower", 4),
    "e_aurc": Metric("E-AURC", "decimal", "lower", 4),
    "coverage": Metric("Coverage of pseudo labels", "percent", "higher", 1),
    "precision": Metric("Precision of pseudo labels", "percent", "higher", 1),
    "used": Metric("Unlabelled samples with a loss", "percent", "higher", 1),
    "miou": Metric("mIoU", "percent", "higher", 1),
    "pixel_accuracy": Metric("Pixel accuracy", "percent", "higher", 1),
    "pseudo_accuracy": Metric("Accuracy of pseudo labels, first half", "percent", "higher", 1),
    "token_nll": Metric("Token NLL", "decimal", "lower", 3),
    "perplexity": Metric("Perplexity", "decimal", "lower", 2),
    "teacher_nll": Metric("Teacher NLL of samples", "decimal", "lower", 3),
    "distinct_5": Metric("Different 5-grams in samples", "percent", "higher", 1),
    "initial_gradient_norm": Metric("Norm of the first gradient", "decimal", "lower", 3),
    "energy_distance": Metric("Energy distance", "decimal", "lower", 4),
    "sliced_wasserstein": Metric("Sliced Wasserstein", "decimal", "lower", 4),
    "frechet_distance": Metric("Fréchet distance", "decimal", "lower", 2),
    "modes": Metric("Modes hit", "decimal", "higher", 1),
    "calls": Metric("Calls of the network", "decimal", "lower", 0),
    "knn_accuracy": Metric("Accuracy of nearest neighbours", "percent", "higher", 1),
    "cluster_accuracy": Metric("Accuracy of matched clusters", "percent", "higher", 1),
    "class_accuracy": Metric("Accuracy of matched clusters, mean over classes", "percent", "higher", 1),
    "f1": Metric("F1 of matched clusters", "percent", "higher", 1),
    "nmi": Metric("NMI", "decimal", "higher", 3),
    "ari": Metric("ARI", "decimal", "higher", 3),
    "size_kl": Metric("KL of cluster sizes", "decimal", "lower", 3),
    "instance_auc": Metric("AUC of instances", "percent", "higher", 1),
    "bag_auc": Metric("AUC of bags", "percent", "higher", 1),
    "bag_accuracy": Metric("Accuracy of bags", "percent", "higher", 1),
    "bag_nll": Metric("NLL of bags", "decimal", "lower", 3),
    "wrong_labels": Metric("Wrong labels", "percent", "lower", 1),
    "error": Metric("Error", "percent", "lower", 1),
    "spearman": Metric("Spearman correlation", "decimal", "higher", 3),
    "pearson": Metric("Pearson correlation", "decimal", "higher", 3),
    "auc": Metric("AUC", "decimal", "higher", 3),
    "map": Metric("mAP", "percent", "higher", 1),
    "map_50": Metric("AP50", "percent", "higher", 1),
    "map_75": Metric("AP75", "percent", "higher", 1),
    "parameters": Metric("Parameters", "count", "lower", 3),
    "macs": Metric("MACs", "count", "lower", 3),
    "latency_ms": Metric("Latency", "ms", "lower", 3),
    "temperature": Metric("Temperature", "decimal", "lower", 2),
}
_PREFIXES = {"scaled": "temperature-scaled", "validation": "validation", "one_step": "one call"}


def metric(name: str) -> Metric:
    """The metric behind a name of the run folder; an unknown one is written as it is called."""
    prefix, _, rest = name.rpartition("/")
    known = METRICS.get(rest)
    if known is None:
        return Metric(name, "decimal", "higher", 4)
    if not prefix:
        return known
    return Metric(f"{known.label}, {_PREFIXES.get(prefix, prefix)}", known.style, known.better, known.digits)


def primary(names: Sequence[str]) -> str | None:
    """The metric a result is first told in: accuracy where there is one, else the first."""
    return "accuracy" if "accuracy" in names else next(iter(names), None)


def written(name: str, value: float, *, unit: bool = True) -> str:
    """A value of a metric: ``96.2 %``, ``0.131``, ``12.3 k``, ``0.53 ms``."""
    shape = metric(name)
    if not math.isfinite(value):
        return "not finite"
    if shape.style == "percent":
        return f"{100 * value:.{shape.digits}f}" + (" %" if unit else "")
    if shape.style == "count":
        return _si(value, shape.digits)
    return f"{value:.{shape.digits}f}" + (" ms" if unit and shape.style == "ms" else "")


def spread(name: str, values: Sequence[float]) -> str:
    """Mean and sample standard deviation over seeds: ``96.2 ± 0.4 %``; one value or no spread: the value."""
    if not values:
        return NOTHING
    mean = statistics.fmean(values)
    if len(values) < 2 or not math.isfinite(mean) or min(values) == max(values):
        return written(name, mean)
    shape, deviation = metric(name), statistics.stdev(values)
    unit = {"percent": " %", "ms": " ms"}.get(shape.style, "")
    return f"{written(name, mean, unit=False)} ± {written(name, deviation, unit=False)}{unit}"


def signed(name: str, value: float, *, unit: bool = True) -> str:
    """A difference: ``+1.21 points`` for fractions, else with its sign in the metric's own unit."""
    shape = metric(name)
    if not math.isfinite(value):
        return "not finite"
    if shape.style == "percent":
        text = f"{100 * value:+.2f}" + (" points" if unit else "")
    elif shape.style == "count":
        text = ("+" if value >= 0 else "-") + _si(abs(value), shape.digits)
    else:
        ms = " ms" if shape.style == "ms" and unit else ""
        text = f"{value:+.{shape.digits + (shape.style == 'decimal')}f}{ms}"
    return text.replace("-", "\u2212")


def seconds(value: float) -> str:
    """A duration: ``0.8 s``, ``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if not math.isfinite(value):
        return NOTHING
    if value < 10:
        return f"{value:.1f} s"
    if value < 60:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def paired_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95% Student t interval of a mean paired difference; None below two finite, differing values."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return None
    if len(set(differences)) == 1:  # equal differences come from a copied result, and say nothing about the spread
        return None
    return student_interval(differences)


def _si(value: float, digits: int) -> str:
    for factor, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.{digits}g}{letter}" if value / factor < 999.5 else f"{value / factor:.0f}{letter}"
    return f"{value:.0f}"
