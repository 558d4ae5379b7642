"""The rows of a table by position, with or without labels."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.data.data import Batch, Data, Records
from limbeck.data.samples import check_labels
from limbeck.errors import LimbeckError

if TYPE_CHECKING:
    from limbeck.data.bags import Bags
    from limbeck.models.table_task import TableTask


class Rows(Records):
    """Rows of a table, map-style, every one with its stable ``index``.

    Args:
        rows: float [N, D].
        labels: int64 [N], -1 for a row without a label.
        classes: the names of the classes.
        columns: the names of the columns.
        indices: int64 [N], the rows' stable positions in their source; as they come where not given.
        num_samples: the size of the source.
        hidden_labels: int64 [N], the truth behind missing labels: for metrics, never for training.
        bags: whose rows these are, bag after bag, where they are: for metrics too.

    Raises:
        LimbeckError: no rows, shapes that do not fit, a number that is not finite, or a label outside the classes.
    """

    def __init__(
        self,
        rows: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        columns: Sequence[str],
        *,
        indices: Tensor | None = None,
        num_samples: int | None = None,
        hidden_labels: Tensor | None = None,
        bags: "Bags | None" = None,
    ) -> None:
        check_rows(rows, columns)
        if labels.shape != rows.shape[:1]:
            raise LimbeckError(f"{len(rows)} rows but labels of shape {list(labels.shape)}: give one label a row")
        self.rows = rows.float()
        self.labels = labels.to(torch.int64)
        self.classes, self.columns = tuple(classes), tuple(columns)
        self.indices = torch.arange(len(rows)) if indices is None else indices
        self.num_samples = len(rows) if num_samples is None else num_samples
        self.hidden_labels, self.bags = hidden_labels, bags
        check_labels(self.labels, self.classes, "the table", self.indices)

    def __getitem__(self, position: int) -> Batch:
        return {name: value[0] for name, value in self.fetch(torch.tensor([position])).items()}

    def fetch(self, positions: Tensor) -> Batch:
        """``row`` float32 [B, D], ``label`` and ``index`` int64 [B], ``hidden_label`` int64 [B] where it is known."""
        batch = {
            "row": self.rows.index_select(0, positions),
            "label": self.labels.index_select(0, positions),
            "index": self.indices.index_select(0, positions),
        }
        if self.hidden_labels is not None:
            batch["hidden_label"] = self.hidden_labels.index_select(0, positions)
        return batch

    def subset(self, positions: Tensor) -> "Rows":
        """The rows at ``positions``, with their indices."""
        return Rows(
            self.rows[positions],
            self.labels[positions],
            self.classes,
            self.columns,
            indices=self.indices[positions],
            num_samples=self.num_samples,
            hidden_labels=None if self.hidden_labels is None else self.hidden_labels[positions],
        )

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Rows, labels, indices and names."""
        digest.update(f"rows {tuple(self.rows.shape)} {self.num_samples} {self.classes} {self.columns}".encode())
        for values in (self.rows, self.labels, self.indices):
            digest.update(values.contiguous().numpy().tobytes())


def check_rows(rows: Tensor, columns: Sequence[str]) -> None:
    """Refuse numbers that are no rows of a table.

    Raises:
        LimbeckError: none, not as many as columns, or one that is not finite (naming its place).
    """
    if not rows.is_floating_point() or not rows.numel() or rows.shape[-1] != len(columns):
        raise LimbeckError(f"rows are {rows.dtype} of shape {list(rows.shape)}, expected float [N, {len(columns)}]")
    broken = (~rows.isfinite()).nonzero()
    if len(broken):
        *place, column = broken[0].tolist()
        raise LimbeckError(f"row {place[0] if len(place) == 1 else place}: {columns[column]} is not finite")


@dataclass(frozen=True)
class TableData(Data):
    """The rows of one run."""

    train: Rows
    validation: Rows
    test: Rows

    @cached_property
    def task(self) -> "TableTask":
        """Classes, columns, and what standardises them: columns of zeros and ones stay as they are."""
        from limbeck.models.table_task import TableTask

        rows = self.train.rows.flatten(0, -2).double()
        std, mean = torch.std_mean(rows, dim=0, correction=0)
        # A rare category would count as much as a whole column of numbers; a constant one has no spread.
        kept = ((rows == 0) | (rows == 1)).all(0) | (std <= 1e-6 * mean.abs())
        std, mean = std.masked_fill(kept, 1.0), mean.masked_fill(kept, 0.0)
        return TableTask(self.classes, self.train.columns, tuple(mean.tolist()), tuple(std.tolist()))
