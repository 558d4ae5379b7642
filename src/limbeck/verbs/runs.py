"""Many runs at once: several processes, one core each, results in the order they were asked for."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
        workers: processes; with 1 everything runs in this process. More need recipes without live objects.
        quiet: show nothing.

    Raises:
        LimbeckError: the first fault of any run; finished runs stay.
    """
    reporter = Reporter(quiet=quiet)
    if workers == 1 or len(jobs) == 1:
        return [_said(_one(job, str(out), quiet), job, reporter) for job in jobs]
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as pool:
        futures = {pool.submit(_one, job, str(out), True): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                _said(future.result(), futures[future], reporter)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _one(job: Job, out: str, quiet: bool) -> dict[str, Any]:
    finished = run(job.recipe, seed=job.seed, name=job.name, out=out, quiet=quiet, label=job.label)
    return {**finished.result, "folder": str(finished.folder)}


def _said(result: dict[str, Any], job: Job, reporter: Reporter) -> dict[str, Any]:
    metrics = result["metrics"]
    reporter.say(
        f"{job.label}: accuracy {metrics['accuracy']:.3f}, NLL {metrics['nll']:.3f}, ECE {metrics['ece']:.3f} "
        f"({result['seconds']:.0f} s)"
    )
    return result
