"""Running a method's program and looking at its stages on the way."""

from collections.abc import Callable
from pathlib import Path

from limbeck.methods.method import Method
from limbeck.stages.progress import Reporter
from limbeck.stages.stage import Context, Program, Stage, drive


def run_stages(
    method: Method,
    folder: Path,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
    look: Callable[[Stage], None] | None = None,
) -> dict[str, Stage]:
    """Run a program to its end.

    Args:
        method: whose program runs.
        folder: of the stages.
        seed: of the run.
        reporter: is told of the progress.
        look: is shown every stage before it runs.

    Returns:
        The stages by name, in order.
    """
    stages: dict[str, Stage] = {}

    def watching() -> Program:
        program, artefact = method.program(), None
        while True:
            try:
                stage = program.send(artefact)
            except StopIteration as finished:
                return finished.value
            stages[stage.name] = stage
            if look is not None:
                look(stage)
            artefact = yield stage

    drive(watching(), Context(folder, "test", seed=seed, reporter=reporter or Reporter(quiet=True)))
    return stages
