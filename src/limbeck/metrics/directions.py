"""Which way a metric is better: plain data, the most telling of each task first."""

from typing import Literal

BETTER: dict[str, Literal["higher", "lower"]] = {
    "accuracy": "higher",
    "nll": "lower",
    "ece": "lower",
    "aurc": "lower",
    "knn_accuracy": "higher",
    "cluster_accuracy": "higher",
    "nmi": "higher",
    "ari": "higher",
    "auc": "higher",
    "instance_auc": "higher",
    "bag_auc": "higher",
    "bag_accuracy": "higher",
    "wrong_labels": "lower",
    "error": "lower",
    "map": "higher",
    "map_50": "higher",
    "map_75": "higher",
    "miou": "higher",
    "pixel_accuracy": "higher",
    "spearman": "higher",
    "pearson": "higher",
    "token_nll": "lower",
    "perplexity": "lower",
    "teacher_nll": "lower",
    "frechet_distance": "lower",
    "energy_distance": "lower",
    "sliced_wasserstein": "lower",
    "modes": "higher",
}
"""Metric -> its better direction. Comparisons and the last line of a run show those that were measured."""
