"""What decides a result, as plain data."""

import dataclasses
import hashlib
import re
from typing import Any

import torch
from torch import Tensor, nn

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def digest(module: nn.Module) -> str:
    """SHA-256 of all weights and buffers of a module, frozen teachers included."""
    digest = hashlib.sha256()
    state: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def module_hash(module: nn.Module) -> str:
    """SHA-256 of a module as it is: weights, buffers and what it is made of."""
    return hashlib.sha256(f"{digest(module)} {structure(module)}".encode()).hexdigest()


def structure(module: nn.Module) -> str:
    """SHA-256 of what a module is made of: the classes, the repr and the plain attributes of all its parts.

    The rate of an average of weights or the limits of a schedule are nowhere else.
    """
    digest = hashlib.sha256(_ADDRESS.sub("", repr(module)).encode())
    for name, part in module.named_modules():
        arguments = {key: value for key, value in plain_arguments(part).items() if is_plain(value)}
        digest.update(f"{name} {type(part).__module__}.{type(part).__qualname__} {sorted(arguments.items())}".encode())
    return digest.hexdigest()


def is_plain(value: object) -> bool:
    """Whether a value is plain data all through, so that it is written the same every time."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(part) for key, part in value.items())
    if isinstance(value, tuple | list):
        return all(is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)


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
