"""What decides a result, as plain data."""

import dataclasses
import hashlib
from typing import Any

import torch
from torch import Tensor, nn


def digest(module: nn.Module) -> str:
    """SHA-256 of all weights and buffers of a module, frozen teachers included."""
    digest = hashlib.sha256()
    state: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plain_arguments(value: object) -> dict[str, Any]:
    """The public attributes of an object that are plain data: its hyperparameters.

    A dataclass may hold dataclasses.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    plain = (bool, int, float, str, tuple, list, type(None))
    return {
        key: part
        for key, part in vars(value).items()
        if not key.startswith("_") and key != "training" and isinstance(part, plain)
    }
