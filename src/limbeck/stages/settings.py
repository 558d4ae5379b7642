"""The settings of one fit, and the blocks it is made of."""

import importlib
import inspect
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from limbeck.errors import LimbeckError, nearest
from limbeck.stages import schedule as schedules

OPTIMIZERS = {
    "sgd": "torch.optim:SGD",
    "adam": "torch.optim:Adam",
    "adamw": "torch.optim:AdamW",
    "rmsprop": "torch.optim:RMSprop",
    "lars": "limbeck.stages.lars:LARS",
    "sam": "limbeck.stages.sam:SAM",
}
SCHEDULES = ("cosine", "quarter_cosine", "linear", "multistep", "constant")


def _sgd() -> dict[str, Any]:
    return {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


@dataclass(frozen=True)
class FitSettings:
    """How one model is trained.

    Attributes:
        epochs: passes over the training samples; not used where ``updates`` is given.
        updates: number of optimiser updates.
        batch_size: samples an update, over all processes and micro-batches together.
        optimizer: ``name`` (sgd, adam, adamw, rmsprop, lars, sam) and the arguments of that class.
        schedule: ``name`` (cosine, quarter_cosine, linear, multistep, constant) of the learning rate and its arguments.
        decay_biases: whether weight decay also pulls on biases and on scales and shifts of normalisation layers (all
            parameters of fewer than two dimensions).
        clip_grad_norm: largest norm of the gradient; none by default.
        accumulate: micro-batches that each batch is split into (less memory, the same gradient).
        accelerator: Lightning Fabric's accelerator (auto, cpu, cuda, mps ...).
        devices: Lightning Fabric's devices: a number, a list such as "0,1", or auto.
        num_nodes: number of machines.
        strategy: Lightning Fabric's strategy (auto, ddp, ddp_fork ...), or such an object from Python.
        precision: Lightning Fabric's precision (32-true, bf16-mixed, 16-mixed, bf16-true ...).
        workers: processes that prepare batches; 0 prepares them in the training process.
        log_every: updates between two rows of the log.
        evaluations: how often the validation data are measured, evenly spread, the end included.
        select: which weights are kept: the last, or those of the best evaluation on the validation data.
        checkpoint_seconds: seconds between two checkpoints.
        loggers: further logs beside metrics.csv: tensorboard, wandb.
    """

    epochs: float = 30
    updates: int | None = None
    batch_size: int = 64
    optimizer: dict[str, Any] = field(default_factory=_sgd)
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "cosine"})
    decay_biases: bool = True
    clip_grad_norm: float | None = None
    accumulate: int = 1
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: Any = "auto"
    precision: str = "32-true"
    workers: int = 0
    log_every: int = 50
    evaluations: int = 10
    select: Literal["last", "best"] = "last"
    checkpoint_seconds: float = 60.0
    loggers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant.

        Raises:
            LimbeckError: a count that must be positive is not, or optimizer or schedule cannot be made.
        """
        for name in ("batch_size", "accumulate", "num_nodes", "log_every"):
            if getattr(self, name) < 1:
                raise LimbeckError(f"fit.{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % self.accumulate:
            raise LimbeckError(
                f"fit.batch_size {self.batch_size} cannot be split into fit.accumulate {self.accumulate} equal parts"
            )
        if (self.updates if self.updates is not None else self.epochs) <= 0:
            raise LimbeckError("fit.epochs or fit.updates must be positive")
        if self.evaluations < 0:
            raise LimbeckError(f"fit.evaluations is {self.evaluations}; it must be at least 0")
        if self.select not in ("last", "best"):
            raise LimbeckError(f"fit.select is {self.select!r}; it must be last or best")
        if self.select == "best" and not self.evaluations:
            raise LimbeckError("fit.select best chooses among evaluations, and fit.evaluations is 0")
        arguments = dict(self.optimizer)
        make = optimizer_class(arguments.pop("name", ""))
        # Its arguments are tried, all but what adds parameters: that imports torch._dynamo, which takes a second.
        trial = type(make.__name__, (make,), {"add_param_group": lambda optimizer, group: None})
        _optimizer(trial, [nn.Parameter(torch.zeros(1))], arguments)
        self.make_schedule()

    def plain(self) -> dict[str, Any]:
        """The settings as plain data; a strategy that is an object becomes its class."""
        strategy = self.strategy if isinstance(self.strategy, str) else type(self.strategy).__qualname__
        return {**asdict(replace(self, strategy="auto")), "strategy": strategy}

    def total_updates(self, samples: int, batch_size: int | None = None) -> int:
        """Number of updates on ``samples`` training samples, read in batches of ``batch_size`` (default: the fit's)."""
        if self.updates is not None:
            return self.updates
        return max(1, int(self.epochs * samples) // (batch_size or self.batch_size))

    def make_optimizer(self, parameters: Iterable[nn.Parameter], *, fused: bool = False) -> torch.optim.Optimizer:
        """The optimiser over ``parameters``; ``fused`` asks for torch's fused kernels unless the settings decide."""
        arguments = dict(self.optimizer)
        make = optimizer_class(arguments.pop("name", ""))
        decided = any(arguments.get(key) is not None for key in ("fused", "foreach")) or arguments.get("differentiable")
        if fused and not decided and "fused" in inspect.signature(make).parameters:
            arguments["fused"] = True
        groups = parameters if self.decay_biases else _without_decay_of_biases(parameters)
        return _optimizer(make, groups, arguments)

    def make_schedule(self) -> schedules.Schedule:
        """The learning-rate schedule."""
        arguments = dict(self.schedule)
        make = schedule_function(arguments.pop("name", ""))
        try:
            schedule: schedules.Schedule = make(**arguments)
        except TypeError as error:
            raise LimbeckError(f"fit.schedule: {error}") from None
        return schedule


def _optimizer(make: Any, parameters: Any, arguments: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        optimizer: torch.optim.Optimizer = make(parameters, **arguments)
    except (LimbeckError, TypeError, ValueError, RuntimeError) as error:
        raise LimbeckError(f"fit.optimizer: {error}") from None
    return optimizer


def _without_decay_of_biases(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels, which decay, and all that has fewer than two dimensions."""
    every = list(parameters)
    decayed: dict[str, Any] = {"params": [p for p in every if p.ndim > 1]}
    others: dict[str, Any] = {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0}
    return [group for group in (decayed, others) if group["params"]]


def optimizer_class(name: str) -> Any:
    """The class of an optimiser by its short name.

    Raises:
        LimbeckError: unknown name.
    """
    if name not in OPTIMIZERS:
        raise LimbeckError(f"unknown optimizer {name!r}.{nearest(name, OPTIMIZERS)} Known: {', '.join(OPTIMIZERS)}")
    module, _, found = OPTIMIZERS[name].partition(":")
    return getattr(importlib.import_module(module), found)


def schedule_function(name: str) -> Any:
    """The schedule by its name.

    Raises:
        LimbeckError: unknown name.
    """
    if name not in SCHEDULES:
        raise LimbeckError(f"unknown schedule {name!r}.{nearest(name, SCHEDULES)} Known: {', '.join(SCHEDULES)}")
    return getattr(schedules, name)
