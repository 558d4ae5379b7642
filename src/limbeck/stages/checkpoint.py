"""The state of a fit on disk: whole or absent, tensors and plain numbers only."""

import io
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck.errors import LimbeckError
from limbeck.stages.engine import Engine
from limbeck.stages.files import write_atomically
from limbeck.stages.log import Log
from limbeck.stages.objective import Objective
from limbeck.stages.processes import is_sharded

if TYPE_CHECKING:
    from limbeck.stages.sharded import WholeObjective

_UNREADABLE = (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError)


class Checkpoint:
    """The state of a fit between two updates, replaced atomically.

    Args:
        path: the file.
        engine: what trains.
        log: its unfinished window belongs to the state.
        whole: the objective that is measured; it is what trains itself, unless that is sharded.
    """

    def __init__(self, path: Path, engine: Engine, log: Log, whole: Objective) -> None:
        self.path = path
        self.engine = engine
        self.log = log
        self.sharded = _whole(engine, whole) if is_sharded(engine.fabric) else None

    def _stateful(self) -> dict[str, Any]:
        engine = self.engine
        optimizers: dict[str, Any] = engine.optimizers
        if self.sharded:
            optimizers = {n: self.sharded.optimizer(o) for n, o in engine.optimizers.items()}
        return {
            "objective": self.sharded or engine.objective,
            **{f"optimizer_{name}": value for name, value in optimizers.items()},
            "precision": engine.fabric.strategy.precision,  # the loss scale of 16-mixed
        }

    def gather(self) -> None:
        """Bring the objective that is measured up to date on the first process."""
        if self.sharded:
            self.sharded.gather()

    def agreed(self, due: bool, asked: bool, update: int) -> tuple[bool, bool]:
        """Whether all processes save and stop: the first one's clock decides, any one may be interrupted."""
        fabric = self.engine.fabric
        if fabric.world_size == 1:
            return due, asked
        if update % 10:
            return False, False
        flags = torch.tensor([float(due and fabric.global_rank == 0), float(asked)], device=fabric.device)
        torch.distributed.all_reduce(flags)
        save, stop = flags.tolist()
        return save > 0, stop > 0

    def save(self, update: int, seconds: float) -> None:
        """Save everything that belongs to the updates so far, unless it is broken.

        Raises:
            LimbeckError: a loss or a weight is NaN or infinite (the older checkpoint stays), or the disk is full.
        """
        self.check(update)
        fabric = self.engine.fabric
        if fabric.global_rank == 0 or self.sharded:  # shards are gathered from all
            state = {name: part.state_dict() for name, part in self._stateful().items()}
        if fabric.global_rank == 0:
            buffer = io.BytesIO()  # torch.save into a file hides why the disk refused
            torch.save({**state, "update": update, "seconds": seconds, "log": self.log.state()}, buffer)
            write_atomically(self.path, lambda part: part.write_bytes(buffer.getbuffer()))
        fabric.barrier()

    def check(self, update: int) -> None:
        """See that losses and weights are still numbers.

        Raises:
            LimbeckError: one of them is not.
        """
        self.log.check()
        weights = self.engine.objective.named_parameters()
        broken = next((n for n, w in weights if w.requires_grad and not bool(w.isfinite().all())), None)
        if self.sharded:
            broken = self.sharded.agreed(broken)
        if broken is not None:
            raise LimbeckError(
                f"the weight {broken} became NaN or infinite by update {update}; the last good state is kept. "
                "Lower the learning rate or set fit.clip_grad_norm."
            )

    def restore(self) -> tuple[int, float]:
        """Go back to the last checkpoint: (updates done, seconds spent); (0, 0) where there is none."""
        if not self.path.exists():
            self.log.rewind(0, {})
            return 0, 0.0
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, part in self._stateful().items():
                part.load_state_dict(state[name])
            update, seconds, log = state["update"], state["seconds"], state["log"]
        except (*_UNREADABLE, pickle.UnpicklingError) as error:
            raise LimbeckError(
                f"{self.path} cannot be read, it is damaged or of another version "
                f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); delete it to start this stage again"
            ) from error
        self.engine.fabric.barrier()  # nobody replaces the file while another reads it
        self.log.rewind(update, log)
        return update, seconds


def _whole(engine: Engine, whole: Objective) -> "WholeObjective":
    from limbeck.stages.sharded import WholeObjective  # takes a second to import

    return WholeObjective(engine.sharded_module, engine.objective, whole)
