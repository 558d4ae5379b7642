"""How the cost of a training step grows with samples, classes and teachers.

A small network on images of 8 x 8 in batches of 64. Samples are up to a million, in memory as bytes: the step of kd,
and of ps-kd with its table of past predictions, should not notice them. Classes are up to 10,000, as many outputs of
student and teacher. Teachers are up to 8 of one size, averaged. What comes before the first step, above all the order
of an epoch, is timed apart.

    python benchmarks/growth.py [--rounds 5] [--threads N]
"""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch

from common import options, quotient, save, show
from limbeck.data.samples import ImageData, Samples
from limbeck.methods.classification.kd import KD
from limbeck.methods.classification.ps_kd import PSKD
from limbeck.models import build
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Objective
from limbeck.stages.processes import make_fabric
from limbeck.stages.settings import FitSettings
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.frozen import Frozen

SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
CLASSES = (10, 100, 1_000, 10_000)
TEACHERS = (1, 2, 4, 8)
UPDATES, SKIP = 120, 20


def images(count: int, classes: int) -> ImageData:
    """Noise."""
    pixels = torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    samples = Samples(pixels, torch.arange(count) % classes, [str(c) for c in range(classes)])
    few = samples.subset(range(64))
    return ImageData(samples, few, few, None, samples.classes, view="none")


def kd(data: ImageData, teachers: int = 1) -> Objective:
    torch.manual_seed(0)
    student, *others = (build("cnn", data.task, width=8) for _ in range(1 + teachers))
    frozen = Frozen(others[0] if teachers == 1 else Ensemble(others), classes=data.classes)
    return KD(student, frozen)


def ps_kd(data: ImageData) -> Objective:
    torch.manual_seed(0)
    return PSKD(build("cnn", data.task, width=8))


class Training:
    """A training whose steps are asked for in pieces, so that those of others can be timed in between.

    Attributes:
        first: seconds before the first step.
    """

    def __init__(self, objective: Objective, data: ImageData) -> None:
        begin = time.perf_counter()
        settings = FitSettings(updates=10**6, batch_size=64, accelerator="cpu")
        self.engine, streams, _ = Fit("fit", objective, data, settings)._set_up(make_fabric(settings), seed=0)
        self.batches = streams[""].batches(0, 10**6)
        self.batch = next(self.batches)
        self.first = time.perf_counter() - begin
        self.seconds(SKIP)

    def seconds(self, updates: int = UPDATES) -> float:
        """Median seconds of a step with its batch."""
        times = []
        for _ in range(updates):
            begin = time.perf_counter()
            self.engine.update(self.batch)
            self.batch = next(self.batches)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)


def curve(
    name: str, unit: str, sizes: tuple[int, ...], make: Callable[[int], Training], rounds: int, flat: bool
) -> list[dict[str, object]]:
    """The rows of a curve."""
    made = {size: make(size) for size in sizes}
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(rounds):
        for size in sizes[:: 1 if number % 2 == 0 else -1]:
            seconds[size].append(made[size].seconds())
    rows = []
    for before, size in pairwise(sizes):
        peer = sizes[0] if flat else before
        factor = 1.15 if flat else size / before
        ratio = quotient(seconds[size], seconds[peer])
        row = {
            "case": f"{name}, {size:,} {unit}",
            "peer_name": f"{peer:,} {unit}",
            "ours": seconds[size],
            "peer": seconds[peer],
            "unit": "seconds a step",
            "ratio": ratio,
            "first_seconds": made[size].first,
            "goal": f"at most {factor:g} times the time",
            "holds": ratio["median"] <= factor,
        }
        show(row, f"; {1e3 * statistics.median(seconds[size]):.2f} ms, {made[size].first:.2f} s before the first step")
        rows.append(row)
    return rows


def main() -> None:
    arguments = options(__doc__, rounds=5).parse_args()
    torch.set_num_threads(arguments.threads)
    rounds = arguments.rounds

    def of_samples(objective: Callable[[ImageData], Objective], classes: int) -> Callable[[int], Training]:
        def make(count: int) -> Training:
            data = images(count, classes)
            return Training(objective(data), data)

        return make

    def of_classes(count: int) -> Training:
        data = images(20_000, count)
        return Training(kd(data), data)

    few = images(1_000, 10)
    rows = curve("kd", "samples", SAMPLES, of_samples(kd, 10), rounds, flat=True)
    rows += curve("ps-kd, 100 classes", "samples", SAMPLES, of_samples(ps_kd, 100), rounds, flat=True)
    rows += curve("kd", "classes", CLASSES, of_classes, rounds, flat=False)
    rows += curve("kd", "teachers", TEACHERS, lambda count: Training(kd(few, count), few), rounds, flat=False)
    save("growth", rows, arguments.threads)


if __name__ == "__main__":
    main()
