"""Using a model as it is used after training, in the middle of one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def as_shipped(model: nn.Module, device: torch.device | str | None = None) -> Iterator[torch.device]:
    """The model as it is used after training: eval mode, no gradients, on ``device``; then as it was.

    Every module gets its own mode back (a frozen teacher inside a training student stays in eval mode), and
    the global random state is put back too, so that measuring in the middle of a training changes nothing.
    """
    home = device_of(model)
    device = home if device is None else torch.device(device)
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        try:
            model.eval()
            if device != home:
                model.to(device)
            yield device
        finally:
            if device != home:
                model.to(home)
            for module, mode in modes:
                module.training = mode
