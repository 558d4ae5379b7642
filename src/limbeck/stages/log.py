"""The log of a fit: named values on the device until a row is due, then one transfer and one write."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, require

COLUMNS = ("update", "epoch", "split", "name", "value")


class Log:
    """Collects detached scalars of every update and writes their means every ``every`` updates.

    Nothing is read from the device in between, so logging does not stall a GPU.
    """

    def __init__(self, folder: Path, every: int, loggers: list[str], *, write: bool = True) -> None:
        self.path = folder / "metrics.csv"
        self.every = every
        self.window: dict[str, list[Tensor]] = {}
        self.first = 0  # the update of the first value in the window
        self.last: float | None = None  # the mean loss of the last window written
        self.write = write
        self.sinks = [_SINKS[name](folder) for name in loggers] if write else []

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Remember the scalars of one update."""
        for name, value in values.items():
            self.window.setdefault(name, []).append(value)

    def check(self) -> dict[str, float]:
        """Means over the window.

        Raises:
            LimbeckError: a term of the loss is NaN or infinite; names the first such update and term.
        """
        names = list(self.window)
        if not names:
            return {}
        lengths = [len(self.window[name]) for name in names]
        host = torch.stack([v.float() for name in names for v in self.window[name]]).cpu().split(lengths)
        bad = [
            (self.first + int((~values.isfinite()).nonzero()[0]) + 1, name)
            for name, values in zip(names, host, strict=True)
            if name.startswith("loss") and not bool(values.isfinite().all())
        ]
        if bad:
            update, term = min(bad, key=lambda pair: (pair[0], pair[1] == "loss"))
            raise LimbeckError(
                f"{term} became NaN or infinite at update {update}; the last good state is kept. "
                "Lower the learning rate, set fit.clip_grad_norm, or look at the data of that batch."
            )
        return {name: float(values.mean()) for name, values in zip(names, host, strict=True)}

    def flush(self, update: int, epoch: float, extra: Mapping[str, float]) -> None:
        """Write one row a name for the window that ends at ``update``."""
        values = self.check()
        self.last = values.get("loss")
        self.rows(update, epoch, "train", {**values, **extra})
        self.window = {}
        self.first = update

    def rows(self, update: int, epoch: float, split: str, values: Mapping[str, float]) -> None:
        """Append values of a split to the log."""
        if not self.write:
            return
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            if new:
                writer.writerow(COLUMNS)
            writer.writerows((update, f"{epoch:.4f}", split, name, repr(v)) for name, v in values.items())
        for sink in self.sinks:
            sink.log_metrics({f"{split}/{name}": value for name, value in values.items()}, update)

    def rewind(self, update: int, window: Mapping[str, Tensor], first: int) -> None:
        """Go back to the state of a checkpoint: rows of later updates are dropped."""
        self.window = {name: list(values) for name, values in window.items()}
        self.first = first
        if self.write and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as handle:
                kept = [row for row in csv.reader(handle) if len(row) == len(COLUMNS)]
            kept = [row for row in kept if row[0] == "update" or int(row[0]) <= update]
            with self.path.open("w", newline="", encoding="utf-8") as handle:
                csv.writer(handle).writerows(kept)

    def state(self) -> dict[str, Any]:
        """The unfinished window, for a checkpoint."""
        return {"first": self.first, "window": {n: torch.stack(v).cpu() for n, v in self.window.items() if v}}

    def close(self) -> None:
        """Finish the further logs."""
        for sink in self.sinks:
            sink.finalize("success")


def _tensorboard(folder: Path) -> Any:
    require("tensorboard", extra="tensorboard")
    from lightning_fabric.loggers import TensorBoardLogger

    return TensorBoardLogger(root_dir=folder, name="tensorboard", version="")


class _WandB:
    """Weights & Biases, continued under the same id after a restart."""

    def __init__(self, folder: Path) -> None:
        import hashlib

        wandb = require("wandb", extra="wandb")
        name = "/".join(folder.parts[-3:])
        run_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self.run = wandb.init(project="limbeck", name=name, id=run_id, dir=str(folder), resume="allow")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def finalize(self, status: str) -> None:
        self.run.finish()


_SINKS = {"tensorboard": _tensorboard, "wandb": _WandB}
