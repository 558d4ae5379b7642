"""What is remembered of every sample: the cost of a step from ten thousand samples to a million.

Past predictions (float16, of ps-kd), averages of them (float32, of sparse-gan) and a queue of keys (of simclr-v2,
ins-mil): a step reads and writes a batch of 128 rows at random. Each size is timed against the smallest, interleaved in
one process; what the memory of a further process rises by at most while it makes 100 steps, the table included, is
beside.

    python benchmarks/memories.py [--rounds 9] [--steps 300] [--threads N]
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import cycle

import torch
from torch import Tensor

from common import alternate, growth, options, quotient, save, show
from limbeck.teachers.averaged_vote import AveragedVote
from limbeck.teachers.key_queue import KeyQueue
from limbeck.teachers.past import PastPredictions

SIZES = (10_000, 100_000, 1_000_000)
CLASSES, BATCH = 100, 128
Step = Callable[[Tensor, Tensor], object]


def past_predictions(samples: int) -> Step:
    """Read what was said of a batch, write what is said now."""
    memory = PastPredictions(samples, CLASSES, dtype="float16")

    def step(index: Tensor, values: Tensor) -> None:
        memory.read(index)
        memory.write(index, values)

    return step


def averages(samples: int) -> Step:
    """Label a batch by two networks and move its averages."""
    memory = AveragedVote(samples, CLASSES)

    def step(index: Tensor, values: Tensor) -> None:
        logits = torch.stack([values, values])
        memory(logits, index)
        memory.update(logits, index)

    return step


def keys(samples: int) -> Step:
    """Push a batch of keys in the place of the oldest."""
    memory = KeyQueue(samples, CLASSES)
    return lambda index, values: memory.push(values, index)


KINDS = {"past predictions, float16": past_predictions, "averages, float32": averages, "queue of keys, float32": keys}


def batches(samples: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random rows and random probabilities, 64 of each again and again."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(64, BATCH, CLASSES, generator=generator).softmax(-1)
    return cycle(zip(torch.randint(samples, (64, BATCH), generator=generator), values, strict=True))


def several(step: Step, drawn: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    """A number of steps."""
    for _ in range(steps):
        step(*next(drawn))


def peak(kind: str, samples: int) -> float:
    """MiB that 100 steps need in a process of their own, the table included."""
    command = [sys.executable, __file__, "--once", kind, str(samples)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def once(kind: str, samples: int) -> None:
    """Make a small table for what is loaded on first use, then the real one, and print what it needed."""
    torch.set_num_threads(1)
    several(KINDS[kind](256), batches(256), 2)
    drawn = batches(samples)

    def work() -> None:
        step = KINDS[kind](samples)
        several(step, drawn, 100)

    print(growth(work) / 2**20)


def main() -> None:
    if sys.argv[1:2] == ["--once"]:
        once(sys.argv[2], int(sys.argv[3]))
        return
    parser = options(__doc__, rounds=9)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for kind, make in KINDS.items():
        made = {size: (make(size), batches(size)) for size in SIZES}
        for step, drawn in made.values():
            several(step, drawn, 64)  # every row that is used has been touched
        works = {str(size): (lambda m=m: several(*m, arguments.steps)) for size, m in made.items()}
        seconds = {
            name: [value / arguments.steps for value in found]
            for name, found in alternate(works, arguments.rounds).items()
        }
        memory = {size: peak(kind, size) for size in SIZES}
        small = str(SIZES[0])
        for size in SIZES[1:]:
            ratio = quotient(seconds[str(size)], seconds[small])
            rows.append(
                {
                    "case": f"{kind}, {size:,} samples x {CLASSES}, a step of {BATCH}",
                    "peer_name": f"{SIZES[0]:,} samples",
                    "ours": seconds[str(size)],
                    "peer": seconds[small],
                    "unit": "seconds a step",
                    "peak_mib": {"ours": memory[size], "peer": memory[SIZES[0]]},
                    "ratio": ratio,
                    "goal": "at most 1.2 times the time, under 500 MB",
                    "holds": ratio["median"] <= 1.2 and memory[size] * 2**20 < 500e6,
                }
            )
            show(rows[-1], f"; {memory[size]:,.0f} MiB")
    save("memories", rows, arguments.threads)


if __name__ == "__main__":
    main()
