"""Two workers of a Ray cluster against one, and against one process without Ray: trials of compare, and labelling.

Every trial and every worker has one thread. Four trials of ``compare`` (two arms, two seeds) are trained in fresh
folders, and a store of labels is written; weights and stores are asserted to have equal bytes first, which also starts
the workers: the start of the cluster and of its processes is not timed. Rounds are interleaved.

    python benchmarks/scale.py [--rounds 5] [--updates 400] [--views 80]
"""

import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import alternate, options, quotient, save, show
from limbeck.data.load import load
from limbeck.models import build
from limbeck.models.classifier import Classifier
from limbeck.verbs.compare import compare
from limbeck.verbs.label import label
from limbeck.verbs.on_ray import connected

SIDES: dict[str, dict[str, Any]] = {
    "alone": {"engine": "processes", "workers": 1},
    "one": {"engine": "ray", "workers": 1},
    "two": {"engine": "ray", "workers": 2},
}
PEERS = {"one": "one worker of the same cluster", "alone": "one process without Ray"}
ARMS = {"plain": {"method": "supervised"}, "smooth": {"method": "supervised", "label_smoothing": 0.1}}


def trials(folder: Path, updates: int, side: dict[str, Any]) -> None:
    """Four trials."""
    student, fit = {"name": "cnn", "width": 8}, {"updates": updates, "evaluations": 1, "accelerator": "cpu"}
    compare(ARMS, seeds=2, out=folder, name="c", quiet=True, data="digits", student=student, fit=fit, **side)


def labels(folder: Path, views: int, model: Classifier, side: dict[str, Any]) -> None:
    """A store of labels."""
    label(model, "digits", out=folder, views=views, top_k=5, quiet=True, **side)


def contents(folder: Path) -> dict[str, bytes]:
    """Weights and labels."""
    files = [*folder.glob("**/*.safetensors"), *folder.glob("**/*.arrow")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def rows(
    case: str, make: Callable[[Path, dict[str, Any]], None], folder: Path, rounds: int, goal: float, count: int = 0
) -> list[dict[str, object]]:
    """Rows of the results, against each peer.

    Args:
        case: what is made.
        make: makes it in an empty folder.
        folder: for the folders.
        rounds: how often each side is timed.
        goal: the largest ratio of times.
        count: of what is counted a second; else seconds are given.
    """
    numbers = itertools.count()

    def once(side: str) -> Path:
        made = folder / f"{side}-{next(numbers)}"
        make(made, SIDES[side])
        return made

    first = {side: contents(once(side)) for side in SIDES}
    once("two")  # by now both workers have started
    assert first["alone"]
    assert first["alone"] == first["one"] == first["two"]
    seconds = alternate({side: partial(once, side) for side in SIDES}, rounds)
    found = []
    for peer, name in PEERS.items():
        ratio = quotient(seconds["two"], seconds[peer])
        given = {side: [count / value if count else value for value in seconds[side]] for side in ("two", peer)}
        found.append(
            {
                "case": f"{case}, two workers",
                "peer_name": name,
                "ours": given["two"],
                "peer": given[peer],
                "unit": "rows a second" if count else "seconds",
                "ratio": ratio,
                "goal": f"at most {goal} of the time",
                "holds": ratio["median"] <= goal,
            }
        )
    return found


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.set_defaults(threads=1)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--views", type=int, default=80)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load("digits", 0)
    torch.manual_seed(0)
    model = build("cnn", data.task, width=32)
    assert isinstance(model, Classifier)
    rounds, views = arguments.rounds, arguments.views
    with connected("ray", 2, None), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = f"four trials of {arguments.updates} updates, cnn, digits"
        found = rows(case, lambda made, side: trials(made, arguments.updates, side), folder / "trials", rounds, 0.6)
        count = views * len(data.train)
        case = f"labelling {count:,} views of digits, cnn"
        found += rows(case, lambda made, side: labels(made, views, model, side), folder / "labels", rounds, 0.6, count)
    for row in found:
        show(row)
    save("scale", found, arguments.threads)


if __name__ == "__main__":
    main()
