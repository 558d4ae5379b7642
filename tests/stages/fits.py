"""Fits that are cut off at chosen updates."""

import csv
import hashlib
from pathlib import Path
from typing import Any

from limbeck.data.samples import ImageData
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, Program, drive

UPDATES = 15  # three epochs of 160 samples in batches of 32


class KilledError(Exception):
    """What stands for a kill in the middle of an update."""


def dying(objective: Objective, update: int) -> Objective:
    """The objective, which raises in its ``update``-th update, when the weights have moved already."""
    kind = type(objective)

    class Dying(kind):  # type: ignore[valid-type, misc]
        def after_update(self, batch: Batch) -> None:
            self._left -= 1
            if self._left == 0:
                raise KilledError
            super().after_update(batch)

    # The same name and source: it is the same objective to everybody else.
    Dying.__qualname__, Dying.__module__ = kind.__qualname__, kind.__module__
    Dying.__name__ = kind.__name__
    objective.__class__ = Dying
    objective.__dict__["_left"] = update
    return objective


def settings(**options: Any) -> FitSettings:
    common = {"updates": UPDATES, "batch_size": 32, "log_every": 4, "evaluations": 3, "checkpoint_seconds": 0.0}
    return FitSettings(**{**common, "accelerator": "cpu", **options})


def fit(
    folder: Path, objective: Objective, data: ImageData, how: FitSettings, pool: Path | None = None, method: str = "toy"
) -> Path:
    """Run one fit in ``folder``; returns its stage's folder."""

    def program() -> Program:
        return (yield Fit("fit", objective, data, how))

    drive(program(), Context(folder=folder, method=method, seed=3, pool=pool))
    return folder / "fit"


def weights_of(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))
