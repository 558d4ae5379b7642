"""LARS: SGD whose step is, layer by layer, in proportion to the size of the weights."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, ParamsT


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman, Ginsburg, arXiv 1708.03888), as SimCLR uses it for large batches.

    With weights w, gradient g, weight decay d, momentum m and trust coefficient eta, in each layer:

        g' = g + d w,    v <- m v + lr (eta ||w|| / ||g'||) g',    w <- w - v,

    where the quotient is 1 if either norm is 0. Parameters of fewer than two dimensions (biases, scales and shifts of
    normalisation) are neither decayed nor scaled, as in SimCLR's released code, which leaves out the classifier too;
    here that is a layer like the others.

    Args:
        params: as of every torch optimiser.
        lr: learning rate.
        momentum: m.
        weight_decay: d.
        eta: trust coefficient.
        nesterov: step along ``m v`` plus the present scaled gradient.

    Raises:
        ValueError: a number below 0, as torch's optimisers have it.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        nesterov: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay), ("eta", eta)):
            if not value >= 0:
                raise ValueError(f"Invalid {name}: {value}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "nesterov": nesterov}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what ``closure``, which computes the loss again, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step(group["params"], group)
        return loss

    def _step(self, parameters: Iterable[torch.Tensor], group: dict[str, Any]) -> None:
        for weight in parameters:
            if weight.grad is None:
                continue
            gradient = weight.grad
            if weight.ndim > 1:
                gradient = gradient + group["weight_decay"] * weight
                size, length = weight.norm(), gradient.norm()
                adapted = group["eta"] * size / torch.where(length > 0, length, 1.0)
                gradient = torch.where((size > 0) & (length > 0), adapted, 1.0) * gradient
            scaled = group["lr"] * gradient
            state = self.state[weight]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(weight)
            velocity = state["momentum"].mul_(group["momentum"]).add_(scaled)
            weight.sub_(group["momentum"] * velocity + scaled if group["nesterov"] else velocity)
