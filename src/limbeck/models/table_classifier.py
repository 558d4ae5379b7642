"""Classifiers of the rows of a table."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.classifier import ClassifierOutput
from limbeck.models.model import Model
from limbeck.models.precision import keep_dtype
from limbeck.models.table_task import TableTask


class TableClassifier(Model):
    """Rows in, logits and features out, for rows of any leading dimensions: of a batch, or of the bags of one.

    Args:
        spec: classes and columns; rows are standardised by its numbers.
        body: rows [*batch, D] to features [*batch, F].
        head: features to logits [*batch, C].
        num_features: F.
    """

    task: ClassVar[str] = "table"
    mean: Tensor
    std: Tensor

    def __init__(self, spec: TableTask, body: nn.Module, head: nn.Module, num_features: int) -> None:
        super().__init__(spec)
        self.body, self.head, self.num_features = body, head, num_features
        # Not persistent: they are written into config.json, in full precision.
        self.register_buffer("mean", torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std), persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> ClassifierOutput:
        """Logits [*batch, C] and features [*batch, F] of ``row`` [*batch, D].

        Raises:
            LimbeckError: no rows in the batch, or rows of another number of columns.
        """
        if "row" not in batch:
            raise LimbeckError(f"the batch holds no 'row', only {sorted(batch)}")
        rows = batch["row"]
        if rows.shape[-1:] != self.mean.shape:
            raise LimbeckError(f"rows have shape {list(rows.shape)}; the model takes {len(self.mean)} columns")
        rows = (rows.float() - self.mean) / self.std
        features = self.body(rows.to(next(self.parameters()).dtype))
        return ClassifierOutput(self.head(features), features)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Buffers of this module itself: its parts are cast as they are asked to be.
        constants = {name: keep_dtype(function)(getattr(self, name)) for name in ("mean", "std")}
        super()._apply(function, recurse)
        for name, value in constants.items():
            setattr(self, name, value)
        return self


def table_mlp(task: TableTask, *, hidden: Sequence[int] = (128, 64), embedding: int | None = None) -> TableClassifier:
    """Multi-layer perceptron with ReLUs on standardised rows.

    Args:
        task: Classes and columns.
        hidden: Units of each hidden layer.
        embedding: Which hidden layer's output are the features, from 1; null the last. The layers after it belong to
            the head.

    Raises:
        LimbeckError: no layers, a size below one, or no such layer.
    """
    sizes = [len(task.columns), *hidden]
    if len(sizes) < 2 or min(sizes) < 1:
        raise LimbeckError(f"table_mlp: hidden must be sizes of layers, at least one, all above 0; got {list(hidden)}")
    depth = len(hidden) if embedding is None else embedding
    if not 1 <= depth <= len(hidden):
        raise LimbeckError(f"table_mlp: embedding is {embedding}; the hidden layers are 1 to {len(hidden)}")
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
    head = nn.Sequential(*layers[depth:], nn.Linear(sizes[-1], len(task.classes)))
    return TableClassifier(task, nn.Sequential(*layers[:depth]), head, sizes[depth])
