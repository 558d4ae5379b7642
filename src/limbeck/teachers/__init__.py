"""Teachers: who makes the labels that a student learns from."""

from limbeck.teachers.batch_statistics import BatchStatistics
from limbeck.teachers.ema import EMA
from limbeck.teachers.ensemble import Ensemble, prior_weights
from limbeck.teachers.frozen import Frozen
from limbeck.teachers.interpolation import AdaptiveInterpolation
from limbeck.teachers.past import PastPredictions

__all__ = ["EMA", "AdaptiveInterpolation", "BatchStatistics", "Ensemble", "Frozen", "PastPredictions", "prior_weights"]
