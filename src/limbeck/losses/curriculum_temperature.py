"""A temperature that is learnt against the student, harder and harder."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class CurriculumTemperature(nn.Module):
    """The global temperature of CTKD (arXiv 2211.16231, section 3.2; reconstructed from memory of it).

    ``T = 1 + 20 sigmoid(x)`` with one learnt x, which goes up the gradient of the distillation loss: in the backward
    pass it is multiplied by ``-lambda``, where lambda grows from 0 to 1 over training as ``(1 - cos(pi n / N)) / 2``.

    Attributes:
        x: scalar parameter, from 1 as in the source.
    """

    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, total: int) -> Float[Tensor, ""]:
        """T, whose gradient to x is reversed.

        Args:
            total: N, number of updates of the whole training; n of them were counted by :meth:`count`.
        """
        strength = (1 - torch.cos(math.pi * (self.updates / total).clamp(max=1.0))) / 2
        # Value x, gradient -strength.
        reversed_x = (1 + strength) * self.x.detach() - strength * self.x
        return 1 + 20 * reversed_x.float().sigmoid()

    def count(self) -> None:
        """Say that an update has been made."""
        self.updates += 1
