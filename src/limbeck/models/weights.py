"""Weights on disk: safetensors, written atomically, read strictly."""

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError

WEIGHTS = "model.safetensors"


def serialise(model: nn.Module) -> bytes:
    """The state of a model in the safetensors format, which shares no memory: tied tensors are written out."""
    seen: set[int] = set()
    state = {}
    for key, tensor in model.state_dict().items():
        host = tensor.detach().cpu().contiguous()
        memory = host.untyped_storage().data_ptr()
        state[key] = host.clone() if memory in seen else host
        seen.add(memory)
    return safetensors.torch.save(state)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights in a folder, on the CPU.

    Raises:
        LimbeckError: no weights, damaged weights, or a pickle.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise LimbeckError(f"{folder} holds no {WEIGHTS}: the saved model is incomplete")
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file starts with the length of its header, 8 bytes of any value, and then "{".
    if start.startswith((b"PK", b"\x80")) and start[8:] != b"{":
        raise LimbeckError(f"{path} is a pickle, not safetensors: pickles can run code and are not read")
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise LimbeckError(f"{path} is damaged or not a safetensors file: {error}") from None


def copy(state: Mapping[str, Tensor], module: nn.Module, folder: Path) -> None:
    """Copy weights into a module; ``folder`` is where they come from, for messages.

    Raises:
        LimbeckError: missing or surplus keys, or other shapes; the module is unchanged then.
    """
    own = module.state_dict()
    missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or surplus:
        raise LimbeckError(f"{folder / WEIGHTS} does not fit the model: missing keys {missing}, surplus keys {surplus}")
    wrong = [
        f"{key} is {list(state[key].shape)}, the model has {list(tensor.shape)}"
        for key, tensor in own.items()
        if state[key].shape != tensor.shape
    ]
    if wrong:
        raise LimbeckError(f"{folder / WEIGHTS} does not fit the model: {'; '.join(wrong)}")
    module.load_state_dict(dict(state), strict=True)


def write(path: Path, content: bytes) -> None:
    """Write a file so that at any instant it is the old one or the new one, on disk."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
