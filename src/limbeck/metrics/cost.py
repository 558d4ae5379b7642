"""What a model costs: parameters, multiply-accumulates, time."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck.errors import LimbeckError

Batch: TypeAlias = Tensor | Mapping[str, Tensor]


def parameters(model: nn.Module) -> int:
    """Number of parameters, trained or not, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, batch: Batch) -> int:
    """Multiply-accumulates of one sample's forward pass: matrix products, convolutions and attention.

    Args:
        model: measured in eval mode, without gradient.
        batch: what the model takes, a tensor or a dict of tensors with the samples in the first dimension;
            on the model's device.

    Raises:
        LimbeckError: an empty batch.
    """
    first = batch if isinstance(batch, Tensor) else next(iter(batch.values()), torch.empty(0))
    if not len(first):
        raise LimbeckError("macs needs a batch with at least one sample")
    with _measuring(model), FlopCounterMode(display=False) as counter:
        model(batch)
    return counter.get_total_flops() // (2 * len(first))


def latency_ms(model: nn.Module, batch: Batch, repeats: int = 20) -> float:
    """Median time of a forward pass of the whole batch, in milliseconds, after 3 that do not count.

    Args:
        model: measured in eval mode, without gradient, on the device and with the threads it has now.
        batch: what the model takes, on the model's device.
        repeats: passes that are timed, >= 1.

    Raises:
        LimbeckError: fewer than one repeat.
    """
    if repeats < 1:
        raise LimbeckError(f"repeats is {repeats}, must be at least 1")
    cuda = any(parameter.is_cuda for parameter in model.parameters())
    seconds = []
    with _measuring(model):
        for _ in range(3 + repeats):
            start = time.perf_counter()
            model(batch)
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return 1000 * float(torch.tensor(seconds[3:], dtype=torch.float64).quantile(0.5))


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; afterwards every module is in the mode it was in (some stay frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
