"""The average of a model's own weights as teacher."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.precision import keep_dtype


class EMA(nn.Module):
    """Exponential moving average of a model's weights (mean teacher, arXiv:1703.01780, section 2).

    After each update ``theta' = d theta' + (1 - d) theta``, where ``d = min(decay, (1 + t) / (10 + t))`` with
    ``t`` = updates made before, or ``d = decay`` without warm-up. With ``warmup="mean"`` it is
    ``d = min(decay, 1 - 1 / (t + 1))``: a copy first, then the plain mean of all models until ``decay`` is reached
    (the ramp of the mean teacher's released code, DACS and U2PL). The average is part of ``state_dict``, gets
    no gradient, predicts in eval mode, and stays in float32 under half precision, which would swallow its
    small steps.

    Args:
        model: The model to average; copied.
        decay: Share of the old average that is kept, in [0, 1]. 0 copies the model, 1 keeps its start.
        warmup: Whether the first updates keep less (0.1 at the first), and by which ramp.
        buffers: Whether buffers (the statistics of batch normalisation) are copied from the model or averaged
            like weights. Integer buffers are always copied.

    Raises:
        LimbeckError: an option out of range.
    """

    num_updates: Tensor

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.999,
        warmup: bool | Literal["mean"] = True,
        buffers: Literal["copy", "average"] = "copy",
    ) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise LimbeckError(f"decay of the average must be in [0, 1], got {decay}")
        if buffers not in ("copy", "average"):
            raise LimbeckError(f"buffers must be 'copy' or 'average', got {buffers!r}")
        if warmup not in (True, False, "mean"):
            raise LimbeckError(f"warmup must be true, false or 'mean', got {warmup!r}")
        self.model = copy.deepcopy(model).requires_grad_(False)
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()
        self.classes: tuple[str, ...] | None = getattr(model, "classes", None)
        self.decay = decay
        self.warmup = warmup
        self.buffer_mode = buffers
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        # The same number on the host: reading the buffer would make every update wait for the device.
        self._updates = 0
        self.register_load_state_dict_post_hook(_count_again)
        self.eval()

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> Any:
        """The averaged model's output."""
        return self.model(batch)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards a model.

        Raises:
            LimbeckError: the model has other parameters or buffers than the averaged one.
        """
        rate = 1 - self.next_decay()
        (parameters, buffers), (new_parameters, new_buffers) = _tensors(self.model), _tensors(model)
        _lerp(parameters, new_parameters, rate, "parameters")
        _lerp(buffers, new_buffers, rate if self.buffer_mode == "average" else 1.0, "buffers")
        self.__dict__["_updates"] += 1  # past nn.Module.__setattr__, which costs as much as an operation
        self.num_updates.add_(1)

    def next_decay(self) -> float:
        """The decay that the next update will use."""
        t = self._updates
        if self.warmup == "mean":
            return min(self.decay, 1 - 1 / (t + 1))
        return min(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever the mode of the owner."""
        return super().train(False)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_dtype(function), recurse)


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers, each once, in the order of the modules: four times as fast as by their names."""
    parameters: dict[int, Tensor] = {}
    buffers: dict[int, Tensor] = {}

    left: list[nn.Module | None] = [model]
    while left:
        module = left.pop()
        if module is None:
            continue
        for parameter in module._parameters.values():
            if parameter is not None:
                parameters[id(parameter)] = parameter
        for buffer in module._buffers.values():
            if buffer is not None:
                buffers[id(buffer)] = buffer
        left += module._modules.values()
    return list(parameters.values()), list(buffers.values())


def _lerp(average: list[Tensor], current: list[Tensor], rate: float, what: str) -> None:
    """``average += rate (current - average)`` in place; integers are copied."""
    if [tensor.shape for tensor in average] != [tensor.shape for tensor in current]:
        raise LimbeckError(f"the {what} of the model do not have the shapes of those that are averaged")
    floats: tuple[list[Tensor], list[Tensor]] = [], []
    for old, new in zip(average, current, strict=True):
        if old.is_floating_point():
            floats[0].append(old)
            floats[1].append(new if new.dtype == old.dtype else new.to(old.dtype))
        else:
            old.copy_(new)
    if floats[0] and rate == 1.0:
        # The model, also where the average is infinite or NaN.
        torch._foreach_copy_(*floats)
    elif floats[0]:
        torch._foreach_lerp_(*floats, rate)


def _count_again(module: nn.Module, incompatible: Any) -> None:
    if isinstance(module, EMA):
        module._updates = int(module.num_updates)
