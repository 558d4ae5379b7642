"""Work spread over a Ray cluster: a task whose process is killed begins anew in another one."""

import contextlib
import functools
import itertools
import logging
import os
import pickle
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from limbeck.errors import LimbeckError, nearest, require
from limbeck.stages.interrupt import Interrupt, ended_by_sigterm

Engine = Literal["processes", "ray"]
ENGINES = get_args(Engine)
Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 3
"""How often a task begins anew after the end of its process or its machine."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about the future
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # prints nothing of a process that died and is replaced
}
"""Ray reads these when it is imported."""

_LOOKING = 0.2
"""Seconds between two looks whether somebody pressed Ctrl-C."""

_STOPPING = 60.0
"""Seconds that cancelled tasks get to finish an update and save."""

_AGAIN = 20.0
"""Seconds after which a task that goes on is cancelled once more: what it is busy with may have swallowed the first."""

_BATCHES = 16
"""Batches a task labels at most: few enough to share them evenly, enough to make sending them cheap."""


@contextlib.contextmanager
def connected(engine: Engine, workers: int, address: str | None) -> Iterator[None]:
    """With the engine ``ray`` be connected to a cluster; a connection that is there already is used and kept.

    Args:
        engine: ``processes`` needs none.
        workers: how much goes on at once: the cores of a cluster that is started here.
        address: of a running cluster, ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``. Without one a cluster is started
            on this machine, and ends when this does.

    Raises:
        LimbeckError: no such engine, Ray is not installed, or no cluster is at the address.
    """
    if engine not in ENGINES:
        raise LimbeckError(f"engine is {engine!r}.{nearest(str(engine), ENGINES)} It must be {' or '.join(ENGINES)}")
    if workers < 1:
        raise LimbeckError(f"workers is {workers}; it must be at least 1")
    if engine != "ray":
        if address is not None:
            raise LimbeckError(f"address {address!r} is that of a Ray cluster; give engine 'ray' too")
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    ray = require("ray", extra="ray")
    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    own = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    # Outermost, since Ray too takes SIGTERM over, and within again, since Ray would abort.
    with ended_by_sigterm():
        try:
            ray.init(**({"address": address} if address else own), **quiet)
        except (OSError, RuntimeError, ValueError, ImportError) as error:
            where = f"at {address}" if address else "on this machine"
            raise LimbeckError(f"there is no Ray cluster {where}: {' '.join(str(error).split())}") from None
        try:
            with ended_by_sigterm():
                yield
        finally:
            ray.shutdown()


def spread(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int, shared: Path, gpu: bool = False
) -> Generator[tuple[int, Result]]:
    """The number of each item and what ``work`` makes of it, in the order in which they are finished.

    Tasks run in the current folder of this process, with its module search path and one thread. Where the generator is
    closed or interrupted, tasks are cancelled, as by Ctrl-C, and get a minute to save; the processes of those that go
    on are killed.

    Args:
        work: must be picklable.
        items: must be picklable.
        workers: how many tasks at once, at most.
        shared: a folder that every machine of the cluster must see.
        gpu: give every task one of the cluster's GPUs, where it has any.

    Raises:
        LimbeckError: something cannot be sent, a machine does not see the folder, a task lost its process too often,
            or what the first task that failed raised.
    """
    ray = require("ray", extra="ray")
    shared.mkdir(parents=True, exist_ok=True)
    gpus = 1 if gpu and ray.cluster_resources().get("GPU", 0) >= 1 else 0
    begin = ray.remote(_task).options(num_cpus=1, num_gpus=gpus, max_retries=RETRIES).remote
    # Together and once, so that what items share is sent once; in a list, so that Ray leaves the unpacking to the task.
    try:
        sent = [ray.put((work, list(items)))]
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise LimbeckError(f"engine 'ray': something cannot be sent to another process: {error}") from None
    waiting = iter(range(len(items)))
    running: dict[Any, int] = {}
    # Ctrl-C is asked for: an exception that a signal raises may end in a callback of Ray, which goes on.
    with tempfile.NamedTemporaryFile(dir=shared, prefix=".ray-") as marker, Interrupt() as interrupt:
        home = _Home(str(Path.cwd()), tuple(sys.path), str(Path(marker.name).absolute()))
        try:
            while not interrupt.asked:
                for number in itertools.islice(waiting, workers - len(running)):
                    running[begin(home, sent, number)] = number
                if not running:
                    return
                for ready in ray.wait(list(running), timeout=_LOOKING)[0]:
                    yield running.pop(ready), _result(ray, ready)
            raise KeyboardInterrupt
        except BaseException:
            _stop(ray, list(running))
            raise


def spread_in_order(
    work: Callable[[range], Iterable[Result]], numbers: range, *, workers: int, shared: Path, gpu: bool
) -> Generator[Result]:
    """What ``work(numbers)`` yields, one result a number, made by tasks of some numbers each; see :func:`spread`."""
    size = max(1, min(_BATCHES, len(numbers) // (4 * workers)))
    parts = [numbers[begin : begin + size] for begin in range(0, len(numbers), size)]
    early: dict[int, list[Result]] = {}
    due = 0
    done = spread(functools.partial(_listed, work), parts, workers=workers, shared=shared, gpu=gpu)
    with contextlib.closing(done):
        for number, results in done:
            early[number] = results
            while due in early:
                yield from early.pop(due)
                due += 1


@dataclass(frozen=True)
class _Home:
    """What a task must find as the process that sent it has it.

    Attributes:
        folder: the current folder, which relative paths begin at.
        path: where modules are looked for.
        marker: a file in the shared folder.
    """

    folder: str
    path: tuple[str, ...]
    marker: str

    def enter(self) -> None:
        """Make this process like the one that sent the task.

        Raises:
            LimbeckError: this machine does not see the folders.
        """
        for needed in (Path(self.marker), Path(self.folder)):
            if not needed.exists():
                raise LimbeckError(
                    f"{socket.gethostname()} does not see {needed}; the folder of the runs and the current one must "
                    "lie on storage that all machines of the cluster see"
                )
        os.chdir(self.folder)
        sys.path += [place for place in self.path if place not in sys.path]


def _task(home: _Home, sent: Sequence[Any], number: int) -> Any:
    """What a process of the cluster does."""
    home.enter()
    torch.set_num_threads(1)
    try:
        work, items = _received(sent[0])
        return work(items[number])
    except KeyboardInterrupt:
        # A cancelled task has saved. One that was told to end by somebody else has saved too, and goes on elsewhere:
        # Ray would take an exception for an answer.
        os._exit(1)


@functools.lru_cache(1)
def _received(sent: Any) -> Any:
    """Unpacked once a process."""
    return require("ray", extra="ray").get(sent)


def _listed(work: Callable[[Item], Iterable[Result]], item: Item) -> list[Result]:
    return list(work(item))


def _stop(ray: Any, tasks: list[Any]) -> None:
    """Interrupt the tasks; the process of one that does not end in time is killed, as nobody waits for it any more."""

    def cancel(seconds: float, force: bool = False) -> None:
        nonlocal tasks
        for task in tasks:
            ray.cancel(task, force=force)
        tasks = ray.wait(tasks, num_returns=len(tasks), timeout=seconds)[1]

    last = time.monotonic() + _STOPPING
    try:
        while tasks and (left := last - time.monotonic()) > 0:
            cancel(min(left, _AGAIN))
    finally:
        while tasks and time.monotonic() < last + _STOPPING:
            cancel(1.0, force=True)  # now and then Ray loses one


def _result(ray: Any, task: Any) -> Any:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LimbeckError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise LimbeckError(
            f"a task lost its process {RETRIES + 1} times, for too little memory perhaps ({type(error).__name__}: "
            f"{reason}); what is finished stays, and the same call goes on"
        ) from None
