"""The log of a fit: named values on the device until a row is due, then one transfer and one write."""

import csv
import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, require
from limbeck.stages.files import saving, write_atomically

if TYPE_CHECKING:
    from lightning_fabric import Fabric

COLUMNS = ("update", "epoch", "split", "name", "value")


class Log:
    """Collects detached scalars of every update and writes their means when a window ends.

    Nothing is read from the device in between, so logging does not stall a GPU. The first process writes.
    """

    def __init__(self, folder: Path, fabric: "Fabric", loggers: list[str]) -> None:
        self.path = folder / "metrics.csv"
        self.fabric = fabric
        self.window: dict[str, dict[int, Tensor]] = {}  # name -> update -> value
        self.last: float | None = None  # the mean loss of the last window written
        self.write = fabric.global_rank == 0
        self.sinks = [_SINKS[name](folder) for name in loggers] if self.write else []

    def add(self, update: int, values: Mapping[str, Tensor]) -> None:
        """Remember the scalars of an update, counted from 1."""
        for name, value in values.items():
            self.window.setdefault(name, {})[update] = value

    def check(self) -> dict[str, float]:
        """Means over the window and the processes, each of which must ask at the same update.

        Raises:
            LimbeckError: a term of the loss is NaN or infinite; names the first such update and term.
        """
        names = list(self.window)
        if not names:
            return {}
        lengths = [len(self.window[name]) for name in names]
        values = torch.stack([v for name in names for v in self.window[name].values()]).float()
        if self.fabric.world_size > 1:
            torch.distributed.all_reduce(values.div_(self.fabric.world_size))
            reduced = dict(zip(names, values.split(lengths), strict=True))
            self.window = {n: dict(zip(w, reduced[n], strict=True)) for n, w in self.window.items()}
        left = iter(values.tolist())
        host = {name: list(islice(left, length)) for name, length in zip(names, lengths, strict=True)}
        bad = [
            (update, name)
            for name, found in host.items()
            if name.startswith("loss")
            for update, value in zip(self.window[name], found, strict=True)
            if not math.isfinite(value)
        ]
        if bad:
            update, term = min(bad, key=lambda pair: (pair[0], pair[1] == "loss"))
            raise LimbeckError(
                f"{term} became NaN or infinite at update {update}; the last good state is kept. "
                "Lower the learning rate, set fit.clip_grad_norm, or look at the data of that batch."
            )
        # NaN is a mean over nothing, such as the precision of pseudo labels where there were none.
        counted = {name: [value for value in found if not math.isnan(value)] for name, found in host.items()}
        return {name: sum(found) / len(found) for name, found in counted.items() if found}

    def flush(self, update: int, epoch: float, extra: Mapping[str, float]) -> None:
        """Write one row a name for the window that ends at ``update``."""
        values = self.check()
        self.last = values.get("loss")
        self.rows(update, epoch, "train", {**values, **extra})
        self.window = {}

    def rows(self, update: int, epoch: float, split: str, values: Mapping[str, float]) -> None:
        """Append values of a split to the log."""
        if not self.write:
            return
        with saving(self.path), self.path.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            if handle.tell() == 0:
                writer.writerow(COLUMNS)
            writer.writerows((update, f"{epoch:.4f}", split, name, repr(v)) for name, v in values.items())
        for sink in self.sinks:
            sink.log_metrics({f"{split}/{name}": value for name, value in values.items()}, update)

    def rewind(self, update: int, window: Mapping[str, Mapping[int, Tensor]]) -> None:
        """Go back to the state of a checkpoint: rows of later updates are dropped; without one, all."""
        self.window = {n: {u: v.to(self.fabric.device) for u, v in w.items()} for n, w in window.items()}
        if self.write and self.path.exists():
            if update == 0:
                self.path.unlink()
                return
            with self.path.open(newline="", encoding="utf-8") as handle:
                kept = [row for row in csv.reader(handle) if len(row) == len(COLUMNS)]
            kept = [row for row in kept if row[0] == "update" or int(row[0]) <= update]
            write_atomically(self.path, lambda part: _write_rows(part, kept))

    def state(self) -> dict[str, dict[int, Tensor]]:
        """The unfinished window, for a checkpoint."""
        return {name: {u: v.cpu().clone() for u, v in values.items()} for name, values in self.window.items()}

    def close(self) -> None:
        """Finish the further logs."""
        for sink in self.sinks:
            sink.finalize("success")


def _write_rows(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)


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
