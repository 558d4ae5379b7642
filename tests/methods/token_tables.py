"""Language models whose logits are known: row ``i`` of the data has row ``i`` of a table."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from limbeck.losses.fused_linear import Projection
from limbeck.models.causal_lm import CausalLMOutput
from limbeck.models.model import Model

from .tables import Floats


class TokenTable(Model):
    """Gives for the row with index ``i`` the logits ``[L, V]`` of row ``i``, exactly, in float64."""

    task = "language"

    def __init__(self, logits: ArrayLike) -> None:
        super().__init__(None)
        self.weight = nn.Parameter(torch.tensor(np.asarray(logits), dtype=torch.float64))

    def forward(self, batch: Any) -> CausalLMOutput:
        return CausalLMOutput(Projection(self.weight[batch["index"]]))

    def gradient(self) -> Floats:
        assert self.weight.grad is not None
        found: Floats = self.weight.grad.numpy()
        return found


def token_batch(labels: ArrayLike) -> dict[str, Tensor]:
    rows = torch.tensor(np.asarray(labels))
    return {"input_ids": rows.clamp(min=0), "labels": rows, "index": torch.arange(len(rows))}


def random_case(
    seed: int, rows: int = 3, length: int = 5, vocabulary: int = 4, scale: float = 3.0
) -> tuple[Floats, Floats, Any]:
    """Student's logits, teacher's logits, labels of which about a third do not count."""
    generator = np.random.default_rng(seed)
    student, teacher = scale * generator.normal(size=(2, rows, length, vocabulary))
    labels = generator.integers(vocabulary, size=(rows, length))
    labels[generator.random((rows, length)) < 0.35] = -100
    labels[0, 1] = 1
    return student, teacher, labels
