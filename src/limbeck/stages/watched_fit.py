"""A fit that also keeps what its training told about each sample."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from limbeck.data.data import Data
from limbeck.models.model import Model
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Objective
from limbeck.stages.score import TABLE, Table, read, write
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context


class Watching(Objective):
    """An objective that learns something about every training sample on the way.

    Attributes:
        columns: names of the columns of its table.
    """

    columns: tuple[str, ...]

    def table(self) -> Table:
        """Column -> float32 [N], in the order of the training samples; asked for after the last update."""
        raise NotImplementedError(f"{type(self).__name__} keeps no table")


class Watched(NamedTuple):
    """What a watched fit gives.

    Attributes:
        model: the trained student.
        table: what the objective learnt about the samples.
    """

    model: Model
    table: Table


class WatchedFit(Fit):
    """A fit whose artefact is the trained student and the table of its objective.

    Args:
        name: the stage's folder.
        objective: student, losses and table.
        data: training, validation and test samples.
        settings: how long, how fast, on what.
    """

    def __init__(self, name: str, objective: Watching, data: Data, settings: FitSettings) -> None:
        super().__init__(name, objective, data, settings)
        self.watching = objective

    def load(self, folder: Path) -> Any:
        """The student with the weights of the finished fit, and the table."""
        return Watched(super().load(folder), read(folder / TABLE))

    def untrained(self) -> Any:
        """The student as it is, and zeros in every column."""
        count = len(self.data.train)
        return Watched(super().untrained(), {name: torch.zeros(count) for name in self.watching.columns})

    def _finish(self, folder: Path, context: Context, updates: int, seconds: float, device: torch.device) -> None:
        write(folder / TABLE, {**self.watching.table(), "index": self.data.train.indices})
        super()._finish(folder, context, updates, seconds, device)  # its result.json comes last
