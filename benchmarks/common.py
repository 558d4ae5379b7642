"""What the benchmarks share: timing side by side, memory, and the file of results."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from limbeck.data.samples import ImageData, Samples
from limbeck.stages.stage import versions

RESULTS = Path(__file__).parent / "results"


def options(doc: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has; the first line of ``doc`` says what it measures."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each side is timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    return parser


def alternate(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work, round after round in one process; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works)[:: 1 if number % 2 == 0 else -1]:
            begin = time.perf_counter()
            works[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def quotient(ours: Sequence[float], peer: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the ratios, round by round."""
    ratios = sorted(a / b for a, b in zip(ours, peer, strict=True))
    return {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}


def resident(name: str) -> int:
    """Bytes of this process's memory (Linux): VmRSS now, VmHWM at its peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{name}:")[2].split()[0])


def growth(work: Callable[[], object]) -> int:
    """Bytes by which the memory of this process rises at most while it works (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def show(row: Mapping[str, object], more: str = "") -> None:
    """Print a row of the results."""
    ratio = row["ratio"]
    assert isinstance(ratio, dict)
    print(
        f"{row['case']}, against {row['peer_name']}: ratio {ratio['median']:.4f} [{ratio['low']:.4f}, "
        f"{ratio['high']:.4f}]{more}; {row['goal']}: {'holds' if row['holds'] else 'DOES NOT HOLD'}",
        flush=True,
    )


def noise(size: int, count: int = 1024) -> ImageData:
    """Grey images without a meaning: speed does not depend on it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, size, size, generator=generator)
    labels = torch.arange(count) % 10
    samples = Samples(images, labels, [str(c) for c in range(10)])
    few = samples.subset(range(64))
    return ImageData(samples, few, few, None, samples.classes, view="none")


def save(name: str, rows: Sequence[Mapping[str, object]], threads: int, device: str = "CPU") -> None:
    """Write ``results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    result = {"name": name, "device": f"{device}, {threads} thread(s)", "versions": versions(), "rows": list(rows)}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
