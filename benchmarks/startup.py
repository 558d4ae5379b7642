"""From the command to the first step: importing, listing, refusing a misspelt key, training, against importing torch.

Every work is a process of its own, the command's own start included; rounds are interleaved. Each has a budget as a
multiple of ``import torch`` in the same round, so that it holds on machines of any speed.

    python benchmarks/startup.py [--rounds 10]
"""

import subprocess
import sys
from functools import partial

from common import alternate, options, quotient, save, show

FIRST_STEP = """
import sys, tempfile
from limbeck.stages.engine import Engine
update = Engine.update
def once(self, batch):
    update(self, batch)
    sys.exit(0)
Engine.update = once
from limbeck.cli import main
with tempfile.TemporaryDirectory() as folder:
    main(["run", "supervised", "--data", "digits", "--out", folder, "--quiet"])
"""
COMMAND = ("-m", "limbeck")
WORKS: dict[str, tuple[tuple[str, ...], int, float]] = {
    "import limbeck": (("-c", "import limbeck"), 0, 0.1),
    "limbeck list": ((*COMMAND, "list"), 0, 0.5),
    "limbeck run kd --help": ((*COMMAND, "run", "kd", "--help"), 0, 2.0),
    "a misspelt key": ((*COMMAND, "run", "kd", "--temprature", "3"), 2, 1.5),
    "limbeck run to the first step": (("-c", FIRST_STEP), 0, 6.0),
}
"""Arguments of Python, the exit status, and the budget."""
PEER = "import torch"


def start(arguments: tuple[str, ...], status: int) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    assert done.returncode == status, done.stderr.decode()


def main() -> None:
    arguments = options(__doc__, rounds=10).parse_args()
    works = {name: partial(start, *work[:2]) for name, work in WORKS.items()} | {PEER: partial(start, ("-c", PEER), 0)}
    alternate(works, 1)  # files are in the cache from here on
    seconds = alternate(works, arguments.rounds)
    rows = []
    for name, (_, _, budget) in WORKS.items():
        ratio = quotient(seconds[name], seconds[PEER])
        rows.append(
            {
                "case": name,
                "peer_name": PEER,
                "ours": seconds[name],
                "peer": seconds[PEER],
                "unit": "seconds",
                "ratio": ratio,
                "goal": f"at most {budget:g} of the time",
                "holds": ratio["median"] <= budget,
            }
        )
        show(rows[-1], f"; {sorted(seconds[name])[len(seconds[name]) // 2]:.2f} s")
    save("startup", rows, 1)


if __name__ == "__main__":
    main()
