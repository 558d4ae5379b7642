"""What a model does on data it is not trained on, task by task."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.stages.evaluation.classification import Predictions, costs, measure, predict_logits, quality
from limbeck.stages.evaluation.index import EVALUATIONS
from limbeck.stages.evaluation.shipped import as_shipped

__all__ = [
    "Evaluation",
    "Predictions",
    "as_shipped",
    "costs",
    "evaluation",
    "measure",
    "predict_logits",
    "quality",
]


class Evaluation(Protocol):
    """How models of one task are measured: a module with these two functions."""

    def validate(self, model: nn.Module, data: Any, device: torch.device) -> dict[str, float]:
        """Cheap numbers on the validation split, during training; nothing where there is nothing to say."""

    def report(
        self, model: nn.Module, teachers: Mapping[str, nn.Module], data: Any, folder: Path, device: torch.device
    ) -> dict[str, float]:
        """The final numbers on the test split, and ``validation/NAME`` on the validation split.

        Numbers of a teacher are called ``TEACHER/NAME``. What the report page shows is written into ``folder``.
        """


def evaluation(task: str) -> Evaluation:
    """How models of a task are measured.

    Raises:
        LimbeckError: nothing measures that task.
    """
    if task not in EVALUATIONS:
        raise LimbeckError(f"nothing measures models for {task!r}; known: {', '.join(EVALUATIONS)}")
    return cast("Evaluation", importlib.import_module(EVALUATIONS[task]))
