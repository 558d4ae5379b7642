"""What the objectives of causal language models have in common."""

import torch
from torch import Tensor

from limbeck.stages.engine import Engine
from limbeck.stages.objective import Batch, Objective


class TokenObjective(Objective):
    """Trains a causal language model on tokens.

    ``result.json`` gets ``initial_gradient_norm``, the norm of the first update's gradient before clipping, where
    the fit clips (``clip_grad_norm``): only then is it known.
    """

    progress = ("token_nll", "lower")
    initial_gradient_norm: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initial_gradient_norm", torch.tensor(torch.nan))

    def step(self, batch: Batch, engine: Engine) -> None:
        """One update; the norm of the first gradient is remembered."""
        super().step(batch, engine)
        norm = engine.values.get("gradient_norm")
        if engine.number == 0 and norm is not None:
            self.initial_gradient_norm.copy_(norm)

    def summary(self) -> dict[str, float]:
        """The norm of the first gradient, where it is known."""
        norm = float(self.initial_gradient_norm)
        return {} if norm != norm else {"initial_gradient_norm": norm}
