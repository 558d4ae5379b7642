"""Stages and the runner: a method's program yields stages; a finished one is not run again."""

import hashlib
import inspect
import json
import os
import platform
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch

import limbeck
from limbeck.data.random import derive
from limbeck.errors import LimbeckError
from limbeck.stages.files import write_json
from limbeck.stages.progress import Reporter

FORMAT_VERSION = 1
Program = Generator["Stage", Any, Any]


@dataclass
class Context:
    """Where and for whom a program runs.

    Attributes:
        folder: the run folder of one seed, ``runs/NAME/seed-N``.
        pool: folder that remembers finished stages of all runs, or None.
        method: slug of the method.
        seed: the run's seed; each stage derives its own from it.
        reporter: shows the progress.
        dry_run: only describe the stages and estimate their time.
    """

    folder: Path
    method: str
    seed: int
    pool: Path | None = None
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True))
    dry_run: bool = False
    stages: list[str] = field(default_factory=list)
    estimates: list[dict[str, Any]] = field(default_factory=list)


class Stage(Protocol):
    """A resumable function from artefacts to one artefact folder."""

    name: str

    def identity(self, context: Context) -> Mapping[str, Any]:
        """Everything that decides the result, as plain data: equal identities, equal artefacts."""

    def run(self, folder: Path, context: Context) -> None:
        """Make the artefact in ``folder``, going on from a checkpoint where there is one.

        ``result.json`` is written last: it marks the stage as finished.
        """

    def load(self, folder: Path) -> Any:
        """The artefact of a finished stage."""

    def describe(self) -> dict[str, Any]:
        """Sizes and an estimate of the time, for a dry run: ``stage``, ``seconds`` and what else there is."""

    def untrained(self) -> Any:
        """What stands for the artefact in a dry run."""


def drive(program: Program, context: Context) -> Any:
    """Run a program: each stage it yields is executed (or found finished) and its artefact sent back."""
    artefact = None
    while True:
        try:
            stage = _next(program, artefact, context)
        except StopIteration as finished:
            return finished.value
        if stage.name in context.stages:
            raise LimbeckError(f"{context.method} yields two stages named {stage.name!r}; give each its own name")
        context.stages.append(stage.name)
        artefact = _describe(stage, context) if context.dry_run else _execute(stage, context)


def _next(program: Program, artefact: Any, context: Context) -> Stage:
    """The program's next stage; what it draws on the way, such as first weights, depends on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(context.seed, "program", len(context.stages)))
        return program.send(artefact)


def _describe(stage: Stage, context: Context) -> Any:
    finished = (context.folder / stage.name / "result.json").exists()
    context.estimates.append({**stage.describe(), **({"seconds": 0.0, "finished": True} if finished else {})})
    return stage.untrained()


def _execute(stage: Stage, context: Context) -> Any:
    folder = context.folder / stage.name
    identity = json.loads(json.dumps(dict(stage.identity(context)), default=str))
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    settings = folder / "settings.json"
    if settings.exists():
        before = json.loads(settings.read_text(encoding="utf-8"))
        if before != identity:
            changed = sorted(k for k in {*before, *identity} if before.get(k) != identity.get(k))
            raise LimbeckError(
                f"{folder} was made from other inputs (changed: {', '.join(changed)}); "
                "choose another --name, or delete that folder"
            )
    elif is_first_process():
        write_json(settings, identity)
    if not _finished(folder) and not _reuse(folder, identity, key, context):
        stage.run(folder, context)
    if context.pool is not None and is_first_process():
        # By way of a file of its own: runs side by side may finish equal stages at the same time.
        own = context.pool / f"{key}.{os.getpid()}"
        write_json(own, os.path.relpath(folder, context.pool))
        own.replace(context.pool / f"{key}.json")
    return stage.load(folder)


def _finished(folder: Path) -> bool:
    return (folder / "result.json").exists()


def _reuse(folder: Path, identity: Mapping[str, Any], key: str, context: Context) -> bool:
    """Copy the artefact of an equal stage that another run has finished."""
    entry = context.pool / f"{key}.json" if context.pool is not None else None
    if entry is None or not entry.exists() or torch.distributed.is_initialized():
        return False  # processes that run side by side must all train
    other = entry.parent / json.loads(entry.read_text(encoding="utf-8"))
    try:
        result = json.loads((other / "result.json").read_text(encoding="utf-8"))
        if json.loads((other / "settings.json").read_text(encoding="utf-8")) != identity:
            return False  # that folder was made anew for something else
        if is_first_process():
            shutil.copytree(other, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("result.json", "*.part"))
            write_json(folder / "result.json", {**result, "method": context.method, "stage": folder.name})
    except (FileNotFoundError, shutil.Error):  # it went away meanwhile
        return False
    return True


def write_result(
    folder: Path,
    context: Context,
    stage: str,
    *,
    metrics: Mapping[str, float],
    updates: int,
    samples_seen: int,
    seconds: float,
) -> None:
    """Write ``result.json``, the last file of a stage: it marks it as finished.

    Args:
        folder: of the stage.
        context: whose run it is.
        stage: the stage's name.
        metrics: its numbers.
        updates: optimiser updates, rounds or steps.
        samples_seen: samples read, repeats counted.
        seconds: time spent, interruptions left out.
    """
    write_json(
        folder / "result.json",
        {
            "format_version": FORMAT_VERSION,
            "method": context.method,
            "stage": stage,
            "seed": context.seed,
            "metrics": dict(metrics),
            "updates": updates,
            "samples_seen": samples_seen,
            "seconds": round(seconds, 3),
            "versions": versions(),
        },
    )


def is_first_process() -> bool:
    """Whether this process writes the run folder (rank 0; true before processes are started)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def source_hash(cls: type) -> str:
    """SHA-256 of the source file that defines ``cls``, or of its name where there is no file."""
    try:
        source = Path(inspect.getfile(cls)).read_bytes()
    except (OSError, TypeError):
        source = f"{cls.__module__}.{cls.__qualname__}".encode()
    return hashlib.sha256(source).hexdigest()


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    # Not from the modules: importing them takes seconds.
    return {
        "limbeck": limbeck.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "lightning_fabric": metadata.version("lightning-fabric"),
        "machine": platform.machine(),
    }
