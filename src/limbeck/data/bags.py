"""Bags of rows of which only the number of positives is known."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.data import Batch, Records
from limbeck.data.random import derive, permutation
from limbeck.data.rows import Rows, TableData, check_rows
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError

Grouping = Literal["random", "feature"]


class Bags(Records):
    """Disjoint bags of equal size, map-style; what is known of a bag is how many of its rows are of the second class.

    Args:
        rows: float [B, n, D].
        counts: positives of each bag, int64 [B].
        classes: the names of the two classes; the second one is counted.
        columns: the names of the columns.
        labels: pseudo labels of the rows, int64 [B, n], -1 where there is none; none at all where not given.
        hidden_labels: int64 [B, n], the truth: for metrics, never for training.

    Raises:
        LimbeckError: no bags, other than two classes, shapes that do not fit, or a count that no bag can have.
    """

    def __init__(
        self,
        rows: Tensor,
        counts: Tensor,
        classes: Sequence[str],
        columns: Sequence[str],
        *,
        labels: Tensor | None = None,
        hidden_labels: Tensor | None = None,
    ) -> None:
        if rows.ndim != 3:
            raise LimbeckError(f"bags have shape {list(rows.shape)}, expected [bags, rows of each, columns]")
        check_rows(rows, columns)
        if len(classes) != 2:
            raise LimbeckError(f"bags count the second of two classes; the classes are {list(classes)}")
        if counts.shape != rows.shape[:1]:
            raise LimbeckError(f"{len(rows)} bags but counts of shape {list(counts.shape)}: give one count a bag")
        wrong = ((counts < 0) | (counts > rows.shape[1])).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise LimbeckError(f"bag {first} of {rows.shape[1]} rows has a count of {int(counts[first])} positives")
        self.rows, self.counts = rows.float(), counts.to(torch.int64)
        self.classes, self.columns = tuple(classes), tuple(columns)
        self.labels = torch.full(rows.shape[:2], -1) if labels is None else labels.to(torch.int64)
        self.hidden_labels = hidden_labels
        self.indices = torch.arange(len(rows))
        self.num_samples = len(rows)
        for name, given in (("labels", labels), ("hidden_labels", hidden_labels)):
            if given is not None and given.shape != rows.shape[:2]:
                raise LimbeckError(
                    f"{name} have shape {list(given.shape)}, the rows of the bags {list(rows.shape[:2])}"
                )

    def __getitem__(self, position: int) -> Batch:
        return {name: value[0] for name, value in self.fetch(torch.tensor([position])).items()}

    @property
    def size(self) -> int:
        """Rows of each bag."""
        return self.rows.shape[1]

    @property
    def members(self) -> Tensor:
        """Positions of the rows of each bag among all rows, bag after bag, int64 [B, n]."""
        return torch.arange(len(self) * self.size).view(len(self), self.size)

    def fetch(self, positions: Tensor) -> Batch:
        """The bags at ``positions``.

        Returns:
            ``row`` float32 [B, n, D], ``proportion`` of the two classes float32 [B, 2], ``label`` int64 [B, n], the
            bag's ``index`` int64 [B], and ``hidden_label`` int64 [B, n] where it is known.
        """
        positive = self.counts.index_select(0, positions) / self.size
        batch = {
            "row": self.rows.index_select(0, positions),
            "proportion": torch.stack([1 - positive, positive], dim=-1),
            "label": self.labels.index_select(0, positions),
            "index": self.indices.index_select(0, positions),
        }
        if self.hidden_labels is not None:
            batch["hidden_label"] = self.hidden_labels.index_select(0, positions)
        return batch

    def relabel(self, labels: Tensor) -> "Bags":
        """The same bags with pseudo ``labels`` of their rows, int64 [B * n], bag after bag."""
        named: dict[str, Any] = {"labels": labels.view(len(self), self.size), "hidden_labels": self.hidden_labels}
        return Bags(self.rows, self.counts, self.classes, self.columns, **named)

    def instances(self) -> Rows:
        """The rows without their bags, bag after bag, with their pseudo labels."""
        hidden = None if self.hidden_labels is None else self.hidden_labels.flatten()
        rows, labels = self.rows.flatten(0, 1), self.labels.flatten()
        return Rows(rows, labels, self.classes, self.columns, hidden_labels=hidden, bags=self)

    def stream(self, batch_size: int, seed: int) -> Stream:
        """Batches of whole bags.

        Args:
            batch_size: rows a batch; what is left of it after the last whole bag is not used.
            seed: of the fit.

        Raises:
            LimbeckError: a bag has more rows.
        """
        if batch_size < self.size:
            raise LimbeckError(
                f"fit.batch_size is {batch_size}, and batches hold whole bags of {self.size} rows; use a multiple"
            )
        return Stream(self, batch_size // self.size, seed)

    def update_hash(self, digest: "hashlib._Hash") -> None:
        """Rows, counts, pseudo labels and names."""
        digest.update(f"bags {tuple(self.rows.shape)} {self.classes} {self.columns}".encode())
        for values in (self.rows, self.counts, self.labels):
            digest.update(values.contiguous().numpy().tobytes())


@dataclass(frozen=True)
class BagData(TableData):
    """Bags to train on; single rows with labels for validation and test."""

    train: Bags  # type: ignore[assignment]  # rows are in it, but fetched bag by bag


def into_bags(
    rows: Rows, size: int, seed: int, *, by: Grouping = "random", values: NDArray[np.generic] | None = None
) -> Bags:
    """Put rows with labels into bags and hide the labels.

    Rows beyond the last full bag are left out: random ones, or those of the largest values.

    Args:
        rows: all with a label.
        size: rows a bag.
        seed: of the run.
        by: at random; or by feature: rows in the order of ``values``, equal ones in random order, are cut into bags, so
            that the rows of a bag are alike.
        values: what decides the order, numbers or words [N].

    Raises:
        LimbeckError: a size below 1, fewer rows than that, another grouping, or no values to group by.
    """
    if not 1 <= size <= len(rows):
        raise LimbeckError(f"bag_size is {size}; with {len(rows)} training rows it can be 1 to {len(rows)}")
    order = permutation(derive(seed, "bags"), len(rows))
    if by == "feature":
        if values is None:
            raise LimbeckError("bags by feature need the name of a column: set data.feature")
        order = order[np.argsort(values[order], kind="stable")]
    elif by != "random":
        raise LimbeckError(f"bags are {by!r}; they must be random or feature")
    chosen = torch.from_numpy(order[: len(rows) // size * size])
    labels = rows.labels[chosen].view(-1, size)
    table = rows.rows[chosen].view(-1, size, rows.rows.shape[1])
    return Bags(table, labels.sum(1), rows.classes, rows.columns, hidden_labels=labels)
