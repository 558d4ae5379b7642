"""Belief propagation on UCI Adult: how it grows with the number of edges, and what the cardinality factor saves.

Growth: 5 nearest neighbours, bags of 8 and of 128 rows as dense graphs, an eighth to all of the 32,561 rows; 100
iterations each, in a process of its own that is handed the edges between neighbours, so that its peak memory is that of
the graph and the messages. A straight line in the number of edges is fitted to the lowest seconds of all rounds and to
memory, each point weighted by its own size (relative deviations count). Then bags of 512: an iteration with one exact
cardinality factor a bag against one with all pairs of a bag, interleaved in one process, and the AUC of both's
marginals beside, as they are different approximations.

    python benchmarks/propagation.py [--rounds 5] [--rows N] [--iterations 100] [--threads N]
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from common import options, quotient, resident, save, show
from limbeck.data.bags import BagData, Bags, into_bags
from limbeck.data.load import load
from limbeck.data.rows import Rows, TableData
from limbeck.errors import LimbeckError
from limbeck.labels.neighbours import kernel, neighbour_edges
from limbeck.labels.propagate import Counts, Field, count_pairs, join, propagate, smoothness
from limbeck.metrics.ranking import auc

K, LAMBDA_S = 5, 0.5
LAMBDA_B = 0.01  # of growth, where the messages of dense bags settle: equal work for all sizes
STRENGTHS = (1.0, 0.001)  # of the bags of 512: one that is right for a factor, one at which a dense graph settles


def everything(count: int | None) -> Rows:
    """All rows of Adult, in a fixed random order."""
    data = load("adult", 0, bag_size=1, validation=1)
    assert isinstance(data, BagData)
    train = data.train.instances()
    assert train.hidden_labels is not None
    rows = torch.cat([train.rows, data.validation.rows, data.test.rows])
    labels = torch.cat([train.hidden_labels, data.validation.labels, data.test.labels])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    return Rows(rows[order], labels[order], data.classes, train.columns)


def neighbours(bags: Bags, rows: Rows) -> tuple[Tensor, Tensor]:
    """Edges and their weights, of the standardised rows."""
    task = TableData(rows, rows, rows, None, rows.classes).task
    features = (bags.rows.flatten(0, 1) - torch.tensor(task.mean)) / torch.tensor(task.std)
    edges = neighbour_edges(features, K)
    return edges, kernel(features, edges)


def grow(file: Path, iterations: int) -> None:
    """In a process of its own: prints edges, seconds of building and of an iteration, and what its memory rose by."""
    given = torch.load(file, weights_only=True)
    # A first time on two rows: what is loaded only when it is used is not counted.
    pair = torch.tensor([[0, 1]])
    propagate(join(smoothness(2, pair, torch.ones(1), 1.0), count_pairs(2, pair, torch.tensor([1]), 1.0)))
    ctypes.CDLL(None).malloc_trim(0)  # what importing and loading left behind is given back
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins here (Linux)
    before = resident("VmRSS")
    begin = time.perf_counter()
    alike = smoothness(given["members"].numel(), given["edges"], given["weights"], LAMBDA_S)
    dense = count_pairs(given["members"].numel(), given["members"], given["counts"], LAMBDA_B)
    field = join(alike, dense)
    built = time.perf_counter()
    made = propagate(field, iterations=iterations, tolerance=0.0).iterations  # fewer where nothing changes any more
    done = time.perf_counter()
    print(json.dumps([len(field.edges), built - begin, (done - built) / made, resident("VmHWM") - before]))


def line(edges: list[float], values: list[float]) -> tuple[float, float]:
    """Intercept and slope of the line with the smallest relative deviations."""
    x, y = np.array(edges), np.array(values)
    design = np.stack([1 / y, x / y], axis=1)
    intercept, slope = np.linalg.lstsq(design, np.ones(len(x)), rcond=None)[0]
    return float(intercept), float(slope)


def once(file: Path, iterations: int, environment: Mapping[str, str] = MappingProxyType({})) -> list[float]:
    """What :func:`grow` prints."""
    command = [sys.executable, __file__, "--grow", str(file), "--iterations", str(iterations)]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    found: list[float] = json.loads(done.stdout)
    return found


def growth(rows: Rows, size: int, rounds: int, iterations: int) -> list[dict[str, object]]:
    counts = [len(rows) // part for part in (8, 4, 2, 1)]
    found: dict[int, list[list[float]]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            part = rows.subset(torch.arange(count))
            bags = into_bags(part, size, seed=0)
            edges, weights = neighbours(bags, part)
            given = {"members": bags.members, "counts": bags.counts, "edges": edges, "weights": weights}
            torch.save(given, Path(folder) / f"{count}.pt")
        for _ in range(rounds):
            for count in counts:
                found[count].append(once(Path(folder) / f"{count}.pt", iterations))
        # A few iterations are enough for the peak, and what is freed goes back at once: the allocator keeps nothing.
        back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        held = {count: once(Path(folder) / f"{count}.pt", min(3, iterations), back)[3] for count in counts}
    edges = [found[count][0][0] for count in counts]
    seconds = [min(row[2] for row in found[count]) for count in counts]  # what else runs can only add
    out = []
    for name, unit, values in (
        ("seconds", "seconds an iteration", seconds),
        ("memory", "bytes", [held[count] for count in counts]),
    ):
        intercept, slope = line(edges, values)
        fitted = [intercept + slope * e for e in edges]
        ratio = quotient(values, fitted)
        out.append(
            {
                "case": f"{name}, bags of {size}, {counts[0]:,} to {counts[-1]:,} rows",
                "peer_name": "a straight line in the number of edges",
                "ours": values,
                "peer": fitted,
                "unit": unit,
                "edges": edges,
                "fit": {"intercept": intercept, "per_edge": slope},
                "building_seconds": [statistics.median(row[1] for row in found[count]) for count in counts],
                "ratio": ratio,
                "goal": "every size within 15% of the line",
                "holds": ratio["low"] >= 0.85 and ratio["high"] <= 1.15,
            }
        )
    return out


def factor_against_pairs(rows: Rows, size: int, rounds: int, iterations: int) -> list[dict[str, object]]:
    bags = into_bags(rows, size, seed=0)
    edges, weights = neighbours(bags, rows)
    assert bags.hidden_labels is not None
    nodes, truth = bags.members.numel(), bags.hidden_labels.flatten()
    alike = smoothness(nodes, edges, weights, LAMBDA_S)
    out = []
    for strength in STRENGTHS:
        arms: list[tuple[Field, Counts | None]] = [
            (alike, Counts(bags.members, bags.counts, strength)),
            (join(alike, count_pairs(nodes, bags.members, bags.counts, strength)), None),
        ]
        each = max(1, iterations // 10)
        seconds: list[list[float]] = [[], []]
        for number in range(rounds):
            for arm in (0, 1) if number % 2 == 0 else (1, 0):
                begin = time.perf_counter()
                made = propagate(*arms[arm], iterations=each, tolerance=0.0).iterations
                seconds[arm].append((time.perf_counter() - begin) / made)
        full = [propagate(*arm, iterations=iterations) for arm in arms]
        ratio = quotient(*seconds)
        out.append(
            {
                "case": f"an iteration, {len(bags)} bags of {size}, lambda_b {strength:g}: factor against pairs",
                "peer_name": f"all {len(arms[1][0].edges):,} pairs as edges",
                "ours": seconds[0],
                "peer": seconds[1],
                "unit": "seconds an iteration",
                "auc": dict(zip(("ours", "peer"), (auc(b.log_odds, truth) for b in full), strict=True)),
                "change": {"ours": full[0].change, "peer": full[1].change},
                "iterations": {"ours": full[0].iterations, "peer": full[1].iterations},
                "ratio": ratio,
                "goal": "at least 10 times faster",
                "holds": ratio["median"] <= 0.1,
            }
        )
    return out


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--grow", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.grow is not None:
        grow(arguments.grow, arguments.iterations)
        return
    try:
        rows = everything(arguments.rows)
    except LimbeckError as error:
        sys.exit(f"nothing measured: {error}")
    found = [row for size in (8, 128) for row in growth(rows, size, arguments.rounds, arguments.iterations)]
    found += factor_against_pairs(rows, 512, arguments.rounds, arguments.iterations)
    for row in found:
        auc_of, fit = row.get("auc"), row.get("fit")
        more = f"; AUC {auc_of['ours']:.4f} against {auc_of['peer']:.4f}" if isinstance(auc_of, dict) else ""
        more += f"; {fit['intercept']:.3g} + {fit['per_edge']:.3g} an edge" if isinstance(fit, dict) else ""
        show(row, more)
    if arguments.rows is None:  # a part of the rows is a trial
        save("propagation", found, arguments.threads)


if __name__ == "__main__":
    main()
