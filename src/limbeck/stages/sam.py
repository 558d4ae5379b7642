"""Sharpness-aware minimisation: the gradient of an update is taken where the loss is worst nearby."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from limbeck.errors import LimbeckError
from limbeck.models.batch_norm import batch_norms


class SAM(SGD):
    """SGD by the gradient of sharpness-aware minimisation (Foret et al., arXiv 2010.01412, equations 2 and 3).

    With the gradient g of the batch at the weights w, an update is one of SGD by the gradient at

        w + rho g / |g|,

    |g| that of all weights together: twice the passes of SGD. The engine takes both gradients on the same batch with
    the same draws (dropout, mixing); batch normalisation remembers the first pass only, and the loss that is logged is
    the one at w.
    With several processes the direction is that of the whole batch (the paper's own code takes each one's own part,
    m-sharpness). rho = 0 is SGD at twice the cost.

    Args:
        params: see torch.optim.SGD, as all but rho.
        lr: learning rate.
        rho: radius, at least 0; 0.05 in the paper.
        momentum: of SGD.
        dampening: of SGD.
        weight_decay: of SGD; it pulls at w, not at the worst weights nearby.
        nesterov: of SGD.

    Raises:
        LimbeckError: a negative radius.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        rho: float = 0.05,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if not rho >= 0:
            raise LimbeckError(f"rho is {rho}; it must be at least 0")
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov)
        self.rho = rho

    @contextmanager
    def at_worst(self) -> Iterator[None]:
        """Within it the weights are ``w + rho g / |g|``, by the gradients they have now; then w again, bit for bit."""
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            gradients = [weight.grad.float() for weight in weights]
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm() if gradients else torch.zeros(())
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.add_((self.rho / (norm + 1e-12) * gradient).to(weight.dtype))
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, before, strict=True):
                    weight.copy_(value)


@contextmanager
def unremembered(model: nn.Module) -> Iterator[None]:
    """What a model does within it leaves no trace in the statistics of its batch normalisation."""
    buffers: list[Tensor] = [buffer for layer in batch_norms(model).values() for buffer in layer.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
