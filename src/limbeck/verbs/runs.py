"""Many runs at once: several processes, one core each, here or on a cluster; results in the order of the jobs."""

import concurrent.futures
import contextlib
import copy
import functools
import multiprocessing
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.metrics.directions import BETTER
from limbeck.stages.interrupt import ended_by_sigterm
from limbeck.stages.progress import Reporter
from limbeck.stages.settings import FitSettings
from limbeck.verbs.on_ray import Engine, connected, spread
from limbeck.verbs.run import run


@dataclass(frozen=True)
class Job:
    """One run: a resolved recipe, a seed and the run folder's name."""

    recipe: Mapping[str, Any]
    seed: int
    name: str
    label: str


def run_all(
    jobs: Sequence[Job],
    out: str | Path,
    *,
    engine: Engine = "processes",
    workers: int = 1,
    address: str | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Run every job and return each one's ``result.json`` with the run folder under ``folder``.

    Args:
        jobs: what to run; finished runs are not repeated.
        out: where run folders are made; on a cluster all machines must see it.
        engine: processes of this machine, or tasks of a Ray cluster, which begin anew when theirs is killed.
        workers: how many at once; one process and everything runs in this one. For more, and on a cluster, live objects
            in a recipe must be of classes that another process can import.
        address: of the Ray cluster; by default one is started for the call.
        quiet: show nothing.

    Raises:
        LimbeckError: the first fault of any run; finished runs stay.
    """
    reporter = Reporter(quiet=quiet)
    with connected(engine, workers, address):
        if engine == "ray":
            return _on_ray(jobs, out, workers, reporter)
        if workers == 1 or len(jobs) == 1:
            return [_said(_one(job, str(out), quiet), job, reporter) for job in jobs]
        return _in_processes(jobs, out, workers, reporter)


def _on_ray(jobs: Sequence[Job], out: str | Path, workers: int, reporter: Reporter) -> list[dict[str, Any]]:
    _refuse_unpicklable(jobs, "engine 'ray'")
    fits = [fit for job in jobs for fit in _fits(job.recipe)]
    for fit in fits:
        if str(fit["devices"]) not in ("1", "auto"):
            raise LimbeckError(f"fit.devices is {fit['devices']}; on Ray each run is one process with one device")
    gpu = any(fit["accelerator"] in ("auto", "cuda", "gpu") for fit in fits)
    results: dict[int, dict[str, Any]] = {}
    work = functools.partial(_one, out=str(out), quiet=True)
    with contextlib.closing(spread(work, jobs, workers=workers, shared=Path(out), gpu=gpu)) as finished:
        for number, result in finished:
            results[number] = _said(result, jobs[number], reporter)
    return [results[number] for number in range(len(jobs))]


def _fits(recipe: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of every fit, a teacher's among them."""
    if isinstance(recipe, FitSettings):
        recipe = recipe.plain()
    if isinstance(recipe, Mapping):
        if {"accelerator", "devices"} <= recipe.keys():
            yield recipe
        for value in recipe.values():
            yield from _fits(value)


def _in_processes(jobs: Sequence[Job], out: str | Path, workers: int, reporter: Reporter) -> list[dict[str, Any]]:
    _refuse_unpicklable(jobs, f"workers={workers}")
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as pool,
        ended_by_sigterm(),
    ):
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
        return [future.result() for future in futures]


def _refuse_unpicklable(jobs: Sequence[Job], asked: str) -> None:
    for recipe in {id(job.recipe): job.recipe for job in jobs}.values():
        try:
            pickle.dumps(recipe)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise LimbeckError(
                f"{asked}: an object of the recipe cannot be sent to another process ({error}); use workers=1 "
                "of the engine 'processes'"
            ) from None


def _one(job: Job, out: str, quiet: bool) -> dict[str, Any]:
    finished = run(_own_modules(job.recipe, {}), seed=job.seed, name=job.name, out=out, quiet=quiet, label=job.label)
    return {**finished.result, "folder": str(finished.folder)}


def _own_modules(recipe: Any, copies: dict[int, Any]) -> Any:
    """The recipe with copies of its live modules: training changes them, and other runs begin with them too."""
    if isinstance(recipe, Mapping):
        return {key: _own_modules(value, copies) for key, value in recipe.items()}
    if isinstance(recipe, list | tuple):
        return [_own_modules(value, copies) for value in recipe]
    return copy.deepcopy(recipe, copies) if isinstance(recipe, nn.Module) else recipe


def _said(result: dict[str, Any], job: Job, reporter: Reporter) -> dict[str, Any]:
    metrics = result["metrics"]
    shown = ", ".join(f"{name} {metrics[name]:.3f}" for name in BETTER if name in metrics)
    reporter.say(f"{job.label}: {shown} ({result['seconds']:.0f} s)")
    return result
