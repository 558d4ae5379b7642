"""What is reported: accuracy, calibration, selective risk, pseudo-label quality, cost."""

from limbeck.metrics.calibration import Reliability, adaptive_ece, ece, fit_temperature, reliability
from limbeck.metrics.classification import (
    brier,
    confusion_matrix,
    group_accuracy,
    nll,
    per_class_accuracy,
    summary,
    top_k_accuracy,
)
from limbeck.metrics.cost import latency_ms, macs, parameters
from limbeck.metrics.pseudo_labels import coverage, precision
from limbeck.metrics.selective import aurc, e_aurc

__all__ = [
    "Reliability",
    "adaptive_ece",
    "aurc",
    "brier",
    "confusion_matrix",
    "coverage",
    "e_aurc",
    "ece",
    "fit_temperature",
    "group_accuracy",
    "latency_ms",
    "macs",
    "nll",
    "parameters",
    "per_class_accuracy",
    "precision",
    "reliability",
    "summary",
    "top_k_accuracy",
]
