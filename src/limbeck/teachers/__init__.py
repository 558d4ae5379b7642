"""Teachers: who makes the labels that a student learns from."""

from limbeck.teachers.ema import EMA
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.frozen import Frozen
from limbeck.teachers.past import PastPredictions

__all__ = ["EMA", "Ensemble", "Frozen", "PastPredictions"]
