"""A device that is not the CPU, simulated on the CPU: what would fail on a GPU because two devices meet fails here.

Tensors of the device say that they are on ``meta``, hold numbers of the CPU and compute with them. As on a GPU an
operation refuses a tensor of the CPU beside them, unless it is a single number in arithmetic or an index, and
a generator of the CPU. Sparse tensors are not simulated.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from limbeck.stages.evaluation import evaluation
from limbeck.stages.fit import Fit, _batches, seed_update
from limbeck.stages.log import Log
from limbeck.stages.objective import Objective
from limbeck.stages.processes import make_fabric

DEVICE = torch.device("meta")

_aten = torch.ops.aten
_ACROSS = {_aten.copy_.default, _aten._to_copy.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_NO_NUMBERS = {"cat", "stack", "index_select", "gather", "scatter", "scatter_", "scatter_add", "scatter_add_"}
_NO_NUMBERS |= {"index_add", "index_add_", "index_copy", "index_copy_", "embedding", "lerp", "lerp_"}


class Elsewhere(Tensor):
    """A tensor of the device, around one of the CPU."""

    held: Tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch leaves the class out
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What would make a tensor of the device from Python's numbers before any operation is seen."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_ours(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return args[0].held.new_tensor(*args[1:], **kwargs).to(DEVICE)
        if func is Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].held.tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            found = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part) if isinstance(part, list) else part for part in found)
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device) == DEVICE


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    leaves = tree_leaves((args, kwargs))
    ours = any(isinstance(leaf, Elsewhere) for leaf in leaves)
    wanted = kwargs.get("device")
    to_cpu, to_us = wanted is not None and torch.device(wanted).type == "cpu", _is_ours(wanted)
    if ours or to_us:
        _refuse(func, args, leaves)
    inner = tree_map(lambda leaf: leaf.held if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
    if to_us:
        inner[1]["device"] = torch.device("cpu")
    out = func(*inner[0], **inner[1])
    if func is _aten.copy_.default:
        return args[0]
    if to_cpu or not (ours or to_us):
        return out
    out = tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, Tensor) else leaf, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if ours else out


def _refuse(func: Any, args: Any, leaves: list[Any]) -> None:
    """Raise what a GPU would."""
    name = func._schema.name.partition("::")[2]
    if any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{func}: a generator of the CPU for a tensor of the device")
    if func in _ACROSS:
        return
    # An index may lie on the CPU, but what is indexed may not where the index does not.
    seen = [args[0], *args[2:3]] if func in _INDEXED else leaves
    for leaf in seen:
        if isinstance(leaf, Tensor) and not isinstance(leaf, Elsewhere) and (leaf.ndim or name in _NO_NUMBERS):
            raise RuntimeError(f"{func}: a tensor {list(leaf.shape)} of {leaf.device} among those of the device")


@contextmanager
def elsewhere() -> Iterator[None]:
    """Simulate the device; torch's own checks of a device's name see the CPU."""
    autocast: Any = torch.autocast
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

    def known(device: str) -> str:
        return "cpu" if device == DEVICE.type else device

    class Autocast(autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__(known(device_type), *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, _Functions(), _Dispatch():
        patch.setattr(torch, "autocast", Autocast)
        patch.setattr(torch, "is_autocast_enabled", lambda device="cpu": enabled(known(device)))
        patch.setattr(torch, "get_autocast_dtype", lambda device: dtype(known(device)))
        yield


def updates(stage: Fit, objective: Objective, folder: Path) -> dict[str, float]:
    """The log of two updates of a fit on the device and what is reported after them; moves ``objective``."""
    stage = copy.copy(stage)
    stage.objective = objective
    fabric = make_fabric(stage.settings)
    engine, streams, _ = stage._set_up(fabric, 0)
    with elsewhere():
        objective.to(DEVICE)
        fabric.strategy._root_device = DEVICE  # type: ignore[attr-defined]
        engine.optimizers = {
            name: _FabricOptimizer(stage.settings.make_optimizer(list(group)), fabric.strategy)
            for name, group in objective.parameter_groups().items()
        }
        log = Log(folder, fabric, [])
        for number, batch in enumerate(_batches(streams, 0, 2, fabric, workers=0)):
            seed_update(0, number, 0, DEVICE)
            engine.update(batch)
            log.add(number + 1, engine.values)
        kept = objective.trained()
        return log.check() | evaluation(kept.task).report(kept, objective.teachers(), stage.data, folder, DEVICE)
