"""What a person watches: the stage, how far it is, the loss and the time left."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Reporter:
    """Shows the progress of stages on standard error: a live bar on a terminal, a line a stage elsewhere.

    Args:
        label: words before the stage's name, such as the arm and the seed.
        quiet: show nothing.
    """

    def __init__(self, label: str = "", *, quiet: bool = False) -> None:
        self.label = label
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self._next = 0.0

    @contextmanager
    def stage(self, stage: str, done: int, total: int) -> Iterator[None]:
        """Show a stage of ``total`` updates of which ``done`` are done, until it ends or fails."""
        if self.quiet or not sys.stderr.isatty():
            yield
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(f"{self.label} {stage}".strip(), total=total, completed=done, loss="")
        with self.bar:
            yield
        self.bar = None

    def advance(self, done: int, loss: float | None) -> None:
        """Show the number of updates done and the last logged loss; at most ten times a second."""
        if self.bar is None or self.task is None:
            return
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + 0.1
        self.bar.update(self.task, completed=done, loss="" if loss is None else f"loss {loss:.3f}")

    def say(self, text: str) -> None:
        """Print one line."""
        if not self.quiet:
            self.console.print(f"{self.label} {text}".strip(), markup=False)
