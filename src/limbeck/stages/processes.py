"""Lightning Fabric as the settings ask for it, and what several processes need not exchange."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.stages.settings import FitSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric


T = TypeVar("T")


def make_fabric(settings: FitSettings) -> "Fabric":
    """Fabric with the settings as they are.

    Raises:
        LimbeckError: Fabric refuses them, or the strategy is one that objectives cannot be trained with.
    """
    # Here: it takes longer to import than everything of ours.
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision=cast("Any", settings.precision),
        )
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise LimbeckError(f"fit: {' '.join(str(error).split())}") from error
    if not isinstance(fabric.strategy, SingleDeviceStrategy | DDPStrategy | FSDPStrategy):
        raise LimbeckError(
            f"fit.strategy {settings.plain()['strategy']!r} cuts the weights up among processes in a way from which "
            "they cannot be gathered in the middle of training; use ddp, or fsdp where one device cannot hold them"
        )
    return fabric


def in_full_precision(fabric: "Fabric") -> bool:
    """Whether nothing is cast: neither weights nor what is computed."""
    from lightning_fabric.plugins import Precision

    return type(fabric.strategy.precision) is Precision


def is_sharded(fabric: "Fabric") -> bool:
    """Whether processes hold parts of the weights."""
    from lightning_fabric.strategies import FSDPStrategy

    return isinstance(fabric.strategy, FSDPStrategy)


def on_first_process(fabric: "Fabric", work: Callable[[], T]) -> T:
    """What ``work`` gives on the first process, on all of them; so is its error.

    Raises:
        LimbeckError: raised by ``work``.
    """
    result, error = None, None
    if fabric.global_rank == 0:
        try:
            result = work()
        except LimbeckError as raised:
            error = raised
    result, error = fabric.broadcast((result, error))
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # broadcast from where it was set


def keep_out_of_ddp(objective: nn.Module) -> None:
    """Frozen teachers and per-sample memories are equal on all processes without being broadcast."""
    names = [
        f"{prefix}.{name}" if name else prefix
        for prefix, module in objective.named_modules()
        if getattr(module, "synchronised", True) is False
        for name in [n for n, _ in module.named_parameters()] + [n for n, _ in module.named_buffers()]
    ]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, names)


def gathered(values: Tensor) -> Tensor:
    """The rows [B, ...] of all processes, one process after the other; the gradient reaches each process's own.

    A loss that every process computes on all rows has, with the mean over processes that DDP takes, the gradient of one
    process that holds them all.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    return torch.cat(_AllGather.apply(values.contiguous()))


class _AllGather(torch.autograd.Function):
    """All processes' tensors of one shape; backward adds up the gradients of all processes."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> tuple[Tensor, ...]:
        """The tensors by rank."""
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values)
        return tuple(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """Of all that was asked of this process's values, the sum."""
        summed = torch.stack(gradients)
        dist.all_reduce(summed)
        return summed[dist.get_rank()]
