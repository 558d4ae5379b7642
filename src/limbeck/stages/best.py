"""The best weights of a fit on its validation data, for papers that choose them so."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import safetensors.torch
import torch
from safetensors import safe_open

from limbeck.errors import LimbeckError
from limbeck.stages.files import write_atomically
from limbeck.stages.objective import Objective
from limbeck.stages.processes import is_sharded

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Best:
    """Keeps the model of the best evaluation so far on disk.

    A fit that was killed and evaluates again finds the same values, so that the file stays right.

    Args:
        folder: of the stage.
        objective: its ``trained()`` model is kept, by its ``progress`` metric.
        fabric: the first process writes.

    Raises:
        LimbeckError: the weights are sharded.
    """

    FILE: ClassVar[str] = "best.safetensors"

    def __init__(self, folder: Path, objective: Objective, fabric: "Fabric") -> None:
        if is_sharded(fabric):
            raise LimbeckError("fit.select best does not go with FSDP, which keeps no whole weights; use select: last")
        self.path = folder / self.FILE
        self.objective = objective
        self.fabric = fabric

    def look(self, update: int, values: dict[str, float]) -> None:
        """Keep the model if the evaluation after ``update`` is better than all before.

        Raises:
            LimbeckError: the metric is not measured, or the disk is full.
        """
        metric, better = self.objective.progress
        if metric not in values:
            raise LimbeckError(f"fit.select best needs the validation metric {metric}; there are: {', '.join(values)}")
        value = values[metric] if better == "higher" else -values[metric]
        if value <= self._value() or self.fabric.global_rank != 0:
            return
        state = {name: weight.cpu().contiguous() for name, weight in self.objective.trained().state_dict().items()}
        stored = safetensors.torch.save(state, {"value": repr(value), "update": str(update)})
        write_atomically(self.path, lambda part: part.write_bytes(stored))

    def restore(self) -> None:
        """Give the model the weights of the best evaluation."""
        self.fabric.barrier()
        if self.path.exists():
            with torch.no_grad():
                self.objective.trained().load_state_dict(safetensors.torch.load_file(self.path))

    def _value(self) -> float:
        if not self.path.exists():
            return -math.inf
        with safe_open(self.path, framework="pt") as file:
            return float(file.metadata()["value"])
