"""Many runs at once: several processes, one core each, results in the order they were asked for."""

import concurrent.futures
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from limbeck.errors import LimbeckError
from limbeck.metrics.directions import BETTER
from limbeck.stages.progress import Reporter
from limbeck.verbs.run import run


@dataclass(frozen=True)
class Job:
    """One run: a resolved recipe, a seed and the run folder's name."""

    recipe: Mapping[str, Any]
    seed: int
    name: str
    label: str


def run_all(jobs: Sequence[Job], out: str | Path, *, workers: int = 1, quiet: bool = False) -> list[dict[str, Any]]:
    """Run every job and return each one's ``result.json`` with the run folder under ``folder``.

    Args:
        jobs: what to run; finished runs are not repeated.
        out: where run folders are made.
        workers: processes; with 1 everything runs in this process. For more, live objects in a recipe must be
            of classes that another process can import.
        quiet: show nothing.

    Raises:
        LimbeckError: the first fault of any run; finished runs stay.
    """
    if workers < 1:
        raise LimbeckError(f"workers is {workers}; it must be at least 1")
    reporter = Reporter(quiet=quiet)
    if workers == 1 or len(jobs) == 1:
        return [_said(_one(job, str(out), quiet), job, reporter) for job in jobs]
    _refuse_unpicklable(jobs, workers)
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as pool:
        before = _stop_on_sigterm()
        futures = {pool.submit(_one, job, str(out), True): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                _said(future.result(), futures[future], reporter)
        except concurrent.futures.process.BrokenProcessPool:
            raise LimbeckError(
                "a worker process ended without a word: there was too little memory, or the script that started it "
                "lacks \"if __name__ == '__main__':\" around this call. Finished runs stay; workers=1 needs neither"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # They finish their update, save and stop; left alone they would train on without anybody waiting.
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)
        return [future.result() for future in futures]


def _stop_on_sigterm() -> Any:
    """Let SIGTERM end this process as Ctrl-C does, so that it takes its workers with it."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    return signal.signal(signal.SIGTERM, stop)


def _refuse_unpicklable(jobs: Sequence[Job], workers: int) -> None:
    for recipe in {id(job.recipe): job.recipe for job in jobs}.values():
        try:
            pickle.dumps(recipe)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise LimbeckError(
                f"workers={workers}: an object of the recipe cannot be sent to another process ({error}); use workers=1"
            ) from None


def _one(job: Job, out: str, quiet: bool) -> dict[str, Any]:
    finished = run(job.recipe, seed=job.seed, name=job.name, out=out, quiet=quiet, label=job.label)
    return {**finished.result, "folder": str(finished.folder)}


def _said(result: dict[str, Any], job: Job, reporter: Reporter) -> dict[str, Any]:
    metrics = result["metrics"]
    shown = ", ".join(f"{name} {metrics[name]:.3f}" for name in BETTER if name in metrics)
    reporter.say(f"{job.label}: {shown} ({result['seconds']:.0f} s)")
    return result
