"""How far a target has moved from the student's own prediction to the teacher's."""

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.precision import keep_dtype


class AdaptiveInterpolation(nn.Module):
    """The interpolation parameter t of TAID (arXiv 2501.16937, section 3.2 and algorithm 1).

    After update n (from 0) of N, with its loss L_n:

        d_n = (L_{n-1} - L_n) / L_{n-1}                         relative improvement
        m_n = beta m_{n-1} + (1 - beta) d_n, m_0 = 0            momentum
        t  <- min(t_end, max(t_lin, t + alpha sigmoid(m_n) (1 - t)))
        t_lin = t_start + (t_end - t_start) n / N.

    The first call only remembers L_0. The floor t_lin, which makes t reach t_end, is that of the released code (from
    memory of the paper, its algorithm has none). In eval mode nothing changes.

    All of it is part of ``state_dict``, stays in float32 under half precision, whose steps are larger than those of
    t, and must be updated with the same loss by all processes.

    Args:
        t_start: t before the first update.
        t_end: t at the end of training.
        alpha: largest step of t. It matters in runs of more than about 2 / alpha updates; below, t_lin is ahead.
        beta: momentum, in [0, 1).
        adaptive: false leaves t at t_lin.

    Raises:
        LimbeckError: an argument out of range.
    """

    synchronised: ClassVar[bool] = False
    """Equal updates keep processes equal: data-parallel training need not broadcast the state."""

    t: Tensor
    previous: Tensor
    momentum: Tensor
    updates: Tensor

    def __init__(
        self,
        t_start: float = 0.4,
        t_end: float = 1.0,
        alpha: float = 5e-4,
        beta: float = 0.99,
        adaptive: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= t_start <= t_end <= 1:
            raise LimbeckError(f"t_start is {t_start} and t_end {t_end}; it must be 0 <= t_start <= t_end <= 1")
        if not alpha >= 0:
            raise LimbeckError(f"alpha is {alpha}; it must be 0 or more")
        if not 0 <= beta < 1:
            raise LimbeckError(f"beta is {beta}; it must be at least 0 and below 1")
        self.t_start, self.t_end = t_start, t_end
        self.alpha, self.beta, self.adaptive = alpha, beta, adaptive
        self.register_buffer("t", torch.tensor(t_start))
        self.register_buffer("previous", torch.tensor(0.0))
        self.register_buffer("momentum", torch.tensor(0.0))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, loss: Tensor, total: int) -> None:
        """Move t after an update.

        Args:
            loss: scalar, the loss of that update: over all micro-batches and processes.
            total: N, number of updates of the whole training.
        """
        if not self.training:
            return
        loss = loss.to(self.previous)
        started = self.updates > 0
        improvement = (self.previous - loss) / (self.previous + 1e-15)
        momentum = self.beta * self.momentum + (1 - self.beta) * improvement
        floor = self.t_start + (self.t_end - self.t_start) * (self.updates / total).clamp(max=1.0)
        step = self.alpha * momentum.sigmoid() * (1 - self.t)
        moved = torch.maximum(floor, self.t + step) if self.adaptive else floor
        self.momentum.copy_(torch.where(started, momentum, self.momentum))
        self.t.copy_(torch.where(started, moved.clamp(max=self.t_end), self.t))
        self.previous.copy_(loss)
        self.updates += 1

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_dtype(function), recurse)
