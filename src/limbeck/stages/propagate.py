"""Propagate: from the counts of bags and the likeness of rows to what each row probably is."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.data.bags import Bags
from limbeck.data.fingerprint import samples_hash
from limbeck.errors import LimbeckError
from limbeck.labels.neighbours import Kernel, kernel, neighbour_edges
from limbeck.labels.propagate import Beliefs, Counts, count_pairs, join, propagate, smoothness
from limbeck.metrics.ranking import auc
from limbeck.stages.score import TABLE, read, write
from limbeck.stages.stage import Context, is_first_process, source_hash, versions, write_result


@dataclass(frozen=True)
class Propagation:
    """The model of the rows' labels, and how its marginals are found.

    Attributes:
        lambda_s: weight of the neighbours.
        lambda_b: weight of the counts.
        k: neighbours a row.
        delta: cosine distance from which on there is no edge.
        kernel: weight of an edge by distance.
        counts: an edge for every pair within a bag, or one cardinality factor a bag.
        max_positives: rows of bags with more positives look for no neighbours; None: all do.
        iterations: of sum-product, at most.
        damping: share of the old message that is kept.
        tolerance: change of a message at which it stops.

    Raises:
        LimbeckError: a number out of range.
    """

    lambda_s: float = 10.0
    lambda_b: float = 10.0
    k: int = 5
    delta: float = 2.0
    kernel: Kernel = "matern"
    counts: Literal["pairwise", "cardinality"] = "pairwise"
    max_positives: int | None = None
    iterations: int = 100
    damping: float = 0.5
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("lambda_s", "lambda_b", "delta", "tolerance"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise LimbeckError(f"{name} is {getattr(self, name)}; it must be at least 0 and finite")
        for name in ("k", "iterations"):
            if getattr(self, name) < 1:
                raise LimbeckError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.damping < 1:
            raise LimbeckError(f"damping is {self.damping}; it must be at least 0 and below 1")
        if self.counts not in ("pairwise", "cardinality"):
            raise LimbeckError(f"counts are {self.counts!r}; they must be pairwise or cardinality")

    def solve(self, features: Tensor, bags: Bags) -> tuple[Beliefs, int]:
        """The marginals of all rows, bag after bag, and the number of edges between neighbours.

        Args:
            features: float [B * n, D], in which rows are alike.
            bags: whose counts are known.
        """
        nodes, seekers = len(features), None
        if self.max_positives is not None:
            seekers = (bags.counts <= self.max_positives).repeat_interleave(bags.size)
        edges = neighbour_edges(features, self.k, self.delta, seekers)
        field = smoothness(nodes, edges, kernel(features, edges, self.kernel), self.lambda_s)
        counts = None
        if self.counts == "pairwise":
            field = join(field, count_pairs(nodes, bags.members, bags.counts, self.lambda_b))
        else:
            counts = Counts(bags.members, bags.counts, self.lambda_b)
        beliefs = propagate(field, counts, iterations=self.iterations, damping=self.damping, tolerance=self.tolerance)
        return beliefs, len(edges)


class Propagated(NamedTuple):
    """What propagation gave.

    Attributes:
        probabilities: that a row is positive, float64 [B * n], bag after bag.
        metrics: ``iterations``, ``change`` (of a message, the last one), ``converged`` (0 or 1), ``edges``; where the
            truth is known ``auc``.
    """

    probabilities: Tensor
    metrics: dict[str, float]


class Propagate:
    """Belief propagation over rows; the artefact is :class:`Propagated`. One that was killed begins again.

    Args:
        name: the stage's folder.
        features: float [B * n, D], bag after bag.
        bags: the rows' bags; hidden labels are measured against, for ``result.json`` only.
        how: the model and the solver.
    """

    def __init__(self, name: str, features: Tensor, bags: Bags, how: Propagation) -> None:
        self.name, self.features, self.bags, self.how = name, features, bags, how

    def identity(self, context: Context) -> Mapping[str, Any]:
        """What decides the marginals: features, bags and model."""
        return {
            "features": hashlib.sha256(self.features.contiguous().numpy().tobytes()).hexdigest(),
            "data": samples_hash(self.bags),
            **dataclasses.asdict(self.how),
            "source": source_hash(type(self)),
            "limbeck": versions()["limbeck"],
        }

    def run(self, folder: Path, context: Context) -> None:
        """Propagate; ``table.safetensors`` and then ``result.json`` are written last."""
        begin = time.perf_counter()
        if is_first_process():
            with context.reporter.stage(self.name, 0, self.how.iterations):
                beliefs, edges = self.how.solve(self.features, self.bags)
            metrics = {
                "iterations": float(beliefs.iterations),
                "change": beliefs.change,
                "converged": float(beliefs.converged),
                "edges": float(edges),
            }
            hidden = self.bags.hidden_labels
            if hidden is not None and len(hidden.unique()) == 2:
                metrics["auc"] = auc(beliefs.log_odds, hidden.flatten())
            rows = torch.arange(len(self.features))
            write(folder / TABLE, {"probability": beliefs.probabilities, "index": rows})
            write_result(
                folder,
                context,
                self.name,
                metrics=metrics,
                updates=0,
                samples_seen=len(rows),
                seconds=time.perf_counter() - begin,
            )
            if not beliefs.converged:
                context.reporter.say(
                    f"{self.name}: messages still change by {beliefs.change:.2g} after {beliefs.iterations} "
                    "iterations; smaller lambda_b and lambda_s, more damping or counts=cardinality help"
                )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()

    def load(self, folder: Path) -> Propagated:
        """The probabilities and the numbers of a finished propagation."""
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return Propagated(read(folder / TABLE)["probability"], result["metrics"])

    def describe(self) -> dict[str, Any]:
        """Sizes, and the time they lead to expect."""
        rows, size = len(self.features), self.bags.size
        pairs = rows * self.how.k + (rows * (size - 1) // 2 if self.how.counts == "pairwise" else 0)
        # About 50 ns an edge and iteration, 1 ns a product of the counts, and a cosine for every pair of rows.
        sums = rows * size * 1e-9 if self.how.counts == "cardinality" else 0.0
        seconds = self.how.iterations * (5e-8 * pairs + sums) + 1e-9 * rows**2 * (5 + self.features.shape[1] / 10)
        return {"stage": self.name, "samples": rows, "edges": pairs, "seconds": seconds}

    def untrained(self) -> Propagated:
        """Each row with the proportion of its bag."""
        share = self.bags.counts.double() / self.bags.size
        return Propagated(share.repeat_interleave(self.bags.size), {})
