"""Weights that are cut up among processes (FSDP), and the whole objective beside them.

What trains is a copy, of which every process holds a part. The objective itself stays whole, on the host: it
is measured, saved and handed on, filled with the weights of the moment on the first process.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp._common_utils import clean_tensor_name

from limbeck.errors import LimbeckError
from limbeck.stages.objective import Objective
from limbeck.stages.settings import FitSettings
from limbeck.teachers.ema import EMA

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricOptimizer


def to_shard(objective: Objective, settings: FitSettings, fabric: "Fabric") -> Objective:
    """The copy of a begun objective that is cut up in its place.

    Raises:
        LimbeckError: the objective needs whole weights in the middle of training.
    """
    name = type(objective).__name__
    if any(isinstance(module, EMA) for module in objective.modules()):
        raise LimbeckError(
            f"{name} averages the student's weights (EMA) after each update, and fit.strategy "
            f"{settings.plain()['strategy']!r} leaves each process only a part of them; use ddp"
        )
    if any(key.endswith("_extra_state") for key in objective.state_dict()):
        raise LimbeckError(f"{name} keeps extra state, which cannot be gathered from sharded modules; use ddp")
    if len(objective.parameter_groups()) > 1:
        # torch's FSDP gathers no state of an optimizer that holds a part of the weights, and clips all at once.
        raise LimbeckError(f"{name} has several optimizers, whose states cannot be gathered under FSDP; use ddp")
    fabric.strategy.precision.convert_module(objective)  # as setup does with the copy
    return copy.deepcopy(objective)


class WholeObjective:
    """The state of a sharded objective by way of its whole twin; every process must ask for it.

    Args:
        module: what Fabric made of the copy, an FSDP module.
        trained: the copy itself.
        whole: its twin.
    """

    def __init__(self, module: nn.Module, trained: Objective, whole: Objective) -> None:
        self.module = module
        self.trained = trained
        self.whole = whole

    def gather(self) -> None:
        """Fill the whole twin on the first process."""
        parts = [m.sharding_strategy for m in FullyShardedDataParallel.fsdp_modules(self.module)]
        offload = ShardingStrategy.NO_SHARD not in parts  # not implemented for it
        with FullyShardedDataParallel.summon_full_params(
            self.module, writeback=False, rank0_only=True, offload_to_cpu=offload
        ):
            if torch.distributed.get_rank() == 0:
                self._copy(self.trained, self.whole)

    def agreed(self, name: str | None) -> str | None:
        """The first process's name that is one: a weight may be broken in one part only."""
        names: list[str | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(names, name)
        return next((clean_tensor_name(found) for found in names if found is not None), None)

    def state_dict(self) -> dict[str, Any]:
        """As that of an objective which is not sharded; of use on the first process."""
        self.gather()
        return self.whole.state_dict()

    def optimizer(self, optimizer: "_FabricOptimizer") -> "WholeOptimizer":
        """The state of one of its optimizers."""
        return WholeOptimizer(self.module, optimizer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that every process was given."""
        self.whole.load_state_dict(state)
        with FullyShardedDataParallel.summon_full_params(self.module, writeback=True):
            self._copy(self.whole, self.trained)

    @torch.no_grad()
    def _copy(self, source: Objective, target: Objective) -> None:
        # What belongs to the state only: FSDP rounds constant buffers under half precision.
        names = self.whole.state_dict().keys()
        values = {clean_tensor_name(name): value for name, value in _tensors(source)}
        for name, value in _tensors(target):
            if clean_tensor_name(name) in names:
                value.copy_(values[clean_tensor_name(name)])


class WholeOptimizer:
    """The state of an optimizer of sharded weights, by their names; every process must ask for it."""

    def __init__(self, module: nn.Module, optimizer: "_FabricOptimizer") -> None:
        self.module = module
        self.optimizer = optimizer.optimizer

    def state_dict(self) -> dict[str, Any]:
        """The whole state; of use on the first process."""
        # "Offloaded" from the CPU, torch 2.15 returns all tensors of a weight (Adam's two) in one and the same memory.
        on_cpu = next(self.module.parameters()).device.type == "cpu"
        options = StateDictOptions(full_state_dict=True, cpu_offload=not on_cpu)
        return get_optimizer_state_dict(self.module, self.optimizer, options=options)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that every process was given."""
        # Not strict: an optimizer that made no step yet has no state.
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_optimizer_state_dict(self.module, self.optimizer, state, options=options)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
