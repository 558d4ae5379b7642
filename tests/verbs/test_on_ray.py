"""Runs and labelling shared by the tasks of a Ray cluster: what one process gives, whoever is killed on the way."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck import cli, models
from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.stages.label import Label
from limbeck.verbs import on_ray
from limbeck.verbs.compare import compare
from limbeck.verbs.label import label
from limbeck.verbs.runs import Job, run_all
from limbeck.verbs.tune import tune
from tests.methods.tables import student

from .test_compare import ARMS, QUICK, Module, comparison, stable

# Ray leaves its child processes and their output to the end of the process.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

MISSING = "Ray is not installed: pip install 'limbeck[ray]'"
SHORT: dict[str, Any] = {"updates": 12, "batch_size": 32}
LONG: dict[str, Any] = {"updates": 2500, "batch_size": 32, "evaluations": 1, "checkpoint_seconds": 0.1}
DATA = {"name": "digits", "labels_per_class": 8}


def test_no_cluster_at_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    """First of all: later tests are connected to one."""
    pytest.importorskip("ray", reason=MISSING)
    words = ["supervised", "--space", "label_smoothing=[0.0]", "--data", "digits", "--student", "mlp"]
    assert cli.main(["tune", *words, "--engine", "ray", "--address", "nowhere:x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("limbeck: there is no Ray cluster at nowhere:x: ")
    assert said.count("\n") == 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster with two cores that this process is connected to."""
    ray = pytest.importorskip("ray", reason=MISSING)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_worker_niceness", "0")  # by default Ray's processes wait for all other tests
        with on_ray.connected("ray", 2, None):
            yield ray.get_runtime_context().gcs_address
    assert not ray.is_initialized()


def finished_in(folder: Path) -> dict[str, bytes]:
    """The weights of every run."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("**/model.safetensors")}


def test_a_comparison_is_that_of_one_process(tmp_path: Path, cluster: str) -> None:
    torch.manual_seed(0)
    # A live module, of a class that a process of the cluster finds by our module search path only.
    arms = {name: {**arm, "student": QUICK["student"]} for name, arm in ARMS.items()}
    arms["mine"] = {"method": "supervised", "student": Module(), "data": load("digits", 0)}
    alone = compare(arms, seeds=2, out=tmp_path / "alone", name="c", quiet=True, fit=SHORT)
    shared = compare(arms, seeds=2, out=tmp_path / "ray", name="c", engine="ray", workers=2, quiet=True, fit=SHORT)
    assert stable(comparison(shared.folder)) == stable(comparison(alone.folder))
    assert finished_in(shared.folder) == finished_in(alone.folder)
    assert len(finished_in(shared.folder)) == 6
    owners = {(folder / ".lock").read_text() for folder in shared.folder.glob("*/seed-*")}
    assert str(os.getpid()) not in owners, "this process trained too"
    assert not list((tmp_path / "ray").glob(".ray-*"))


def test_the_fault_of_a_run_is_the_users_error(tmp_path: Path, cluster: str) -> None:
    recipe = {"method": "supervised", **QUICK, "data": {"name": "digits", "labels_per_class": 10_000}}
    jobs = [Job(recipe, seed, "x", f"seed {seed}") for seed in (0, 1)]
    said = []
    for engine in ("processes", "ray"):
        with pytest.raises(LimbeckError, match=r"10,?000") as refused:
            run_all(jobs, tmp_path / engine, engine=engine, quiet=True)  # type: ignore[arg-type]
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_machines_that_do_not_see_the_folders_are_told(tmp_path: Path) -> None:
    home = on_ray._Home(str(tmp_path), (), str(tmp_path / "runs/.ray-x"))
    with pytest.raises(LimbeckError, match=r"does not see .*runs/\.ray-x; the folder of the runs"):
        home.enter()


def test_what_cannot_be_sent_is_refused(tmp_path: Path, cluster: str) -> None:
    class Local(Module):
        """Of this test: no other process can import it."""

    recipe = {"method": "supervised", "student": Local(), "data": "digits", "fit": SHORT}
    with pytest.raises(LimbeckError, match="engine 'ray': an object of the recipe cannot be sent"):
        run_all([Job(recipe, 0, "x", "x")], tmp_path, engine="ray", quiet=True)
    recipe = {"method": "supervised", **QUICK, "fit": {"accelerator": "cpu", "devices": 2}}
    with pytest.raises(LimbeckError, match=r"fit\.devices is 2; on Ray each run is one process"):
        run_all([Job(recipe, 0, "x", "x")], tmp_path, engine="ray", quiet=True)
    with pytest.raises(LimbeckError, match="engine 'ray': something cannot be sent"):
        list(on_ray.spread(lambda _: threading.Lock(), [threading.Lock()], workers=1, shared=tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "rai"}, r"engine is 'rai'\. Did you mean 'ray'\? It must be processes or ray"),
        ({"address": "auto"}, "address 'auto' is that of a Ray cluster; give engine 'ray' too"),
        ({"engine": "ray", "workers": 0}, "workers is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    space = {"label_smoothing": [0.0, 0.1]}
    with pytest.raises(LimbeckError, match=message):
        tune("supervised", space, out=tmp_path, quiet=True, data="digits", **QUICK, **options)


def test_tuning(tmp_path: Path, cluster: str) -> None:
    space = {"label_smoothing": [0.0, 0.1]}
    options: dict[str, Any] = {"seeds": 1, "quiet": True, "data": "digits", **QUICK}
    alone = tune("supervised", space, out=tmp_path / "alone", **options)
    shared = tune("supervised", space, out=tmp_path / "ray", engine="ray", workers=2, **options)
    assert shared.trials == alone.trials


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    models.save(student(load("digits", 0)), folder)
    return folder


def files_of(store: Path) -> dict[str, Any]:
    """All bytes of a store; of its description all but the time that it took."""
    found: dict[str, Any] = {file.name: file.read_bytes() for file in store.glob("*.arrow")}
    return {**found, "store.json": json.loads((store / "store.json").read_text()) | {"seconds": 0.0}}


def test_a_store_has_the_bytes_of_one_process(
    tmp_path: Path, cluster: str, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.verbs.label.ROWS_A_FILE", 300)
    options: dict[str, Any] = {**DATA, "batch_size": 32, "quiet": True, "seed": 4}
    data = options.pop("name")
    ray: dict[str, Any] = {"engine": "ray", "workers": 2}
    for kept in ({"top_k": 3}, {"storage": "uint8"}):
        name = next(iter(kept))
        alone = label(teacher, data, out=tmp_path / name, views=2, **kept, **options)
        shared = label(teacher, data, out=tmp_path / f"{name}-ray", views=2, **kept, **options, **ray)
        assert shared == alone
        assert files_of(tmp_path / f"{name}-ray") == files_of(tmp_path / name)
        assert len(files_of(tmp_path / name)) > 8

    # Labelling that was stopped by one goes on with the other, and views are added.
    class Stop(BaseException):
        pass

    advance = []

    def stop(*_: object) -> None:
        advance.append(0)
        if len(advance) == 30:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.stages.progress.Reporter.advance", stop)
        with pytest.raises(Stop):
            label(teacher, data, out=tmp_path / "stopped", views=2, top_k=3, **options, **ray)
    assert 1 < len(list((tmp_path / "stopped").glob("rows-*"))) < 6
    label(teacher, data, out=tmp_path / "stopped", views=2, top_k=3, **options)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "top_k")
    label(teacher, data, out=tmp_path / "top_k", views=3, top_k=3, **options)
    label(teacher, data, out=tmp_path / "top_k-ray", views=3, top_k=3, **options, **ray)
    assert files_of(tmp_path / "top_k-ray") == files_of(tmp_path / "top_k")


class Dies(nn.Module):
    """A teacher whose first process is killed in the middle."""

    def __init__(self, model: nn.Module, once: Path) -> None:
        super().__init__()
        self.model, self.once = model, str(once)

    def forward(self, batch: Any) -> Any:
        try:
            with Path(self.once).open("x"):
                os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
        return self.model(batch)


def test_batches_of_mixed_streams_are_shared_too_and_a_killed_process_is_no_loss(
    tmp_path: Path, cluster: str, teacher: Path
) -> None:
    from limbeck.stages.stage import Context

    data = load("digits", 0, labels_per_class=8)
    assert isinstance(data, ImageData)
    model = models.load(teacher)

    def made(network: nn.Module, **changes: Any) -> Label:
        kind: dict[str, Any] = {"batches": 40, "batch_size": 8, "mixing": "cutmix", "storage": "float32", "every": 7}
        return Label("relabel", network, data.train, view="crop", flip=True, seed=5, **kind, **changes)

    for folder in (tmp_path / "alone", tmp_path / "ray"):
        spread = None
        if folder.name == "ray":
            spread = partial(on_ray.spread_in_order, workers=2, shared=folder, gpu=False)
        else:
            (tmp_path / "once").touch()
        made(Dies(model, tmp_path / "once"), spread=spread).run(folder, Context(tmp_path, "test", 0))
        (tmp_path / "once").unlink()
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "alone")


def test_on_the_command_line(
    tmp_path: Path, cluster: str, teacher: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ray = ["--engine", "ray", "--workers", "2", "--address", cluster]
    words = [f"kd --teacher {teacher}", "supervised", "--data", "digits", "--student", "mlp", "--student.hidden", "8"]
    words += ["--fit.updates", "6", "--seeds", "1", "--no-report"]
    assert cli.main(["compare", *words, "--name", "c", *ray]) == 0
    said = capsys.readouterr()
    assert "kd: " in said.out
    assert sorted(line.partition(":")[0] for line in said.err.splitlines()) == ["kd, seed 0", "supervised, seed 0"]
    assert json.loads((tmp_path / "runs/c/comparison.json").read_text())["seeds"] == [0]
    words = ["label", str(teacher), "--data", "digits", "--data.labels_per_class", "8", "--out", "store"]
    assert cli.main([*words, *ray]) == 0
    assert cli.main([*words, "--workers", "2"]) == 2
    assert "several share the labelling on Ray only" in capsys.readouterr().err
    assert cli.main(["compare", "kd", "supervised", "--engine", "rai"]) == 2
    assert "rai" in capsys.readouterr().err


def end(run: Path, number: int, ended: dict[Path, int]) -> None:
    """Send a signal to the process that trains, as soon as it has saved."""
    for _ in range(24_000):
        if (run / "fit/checkpoint.pt").exists():
            owner = int((run / ".lock").read_text())
            os.kill(owner, number)
            if not (run / "fit/result.json").exists():
                ended[run] = owner
            return
        time.sleep(0.01)


def test_runs_whose_processes_end_go_on_and_end_with_the_same_bits(tmp_path: Path, cluster: str) -> None:
    recipe = {"method": "supervised", "student": QUICK["student"], "data": "digits", "fit": LONG}
    jobs = [Job(recipe, seed, "x", "x") for seed in (0, 1)]
    whole = run_all(jobs, tmp_path / "alone", quiet=True)
    folders = [tmp_path / "ray/x" / f"seed-{seed}" for seed in (0, 1)]
    ended: dict[Path, int] = {}
    numbers = (signal.SIGKILL, signal.SIGTERM)
    enders = [threading.Thread(target=end, args=(f, n, ended)) for f, n in zip(folders, numbers, strict=True)]
    for ender in enders:
        ender.start()
    results = run_all(jobs, tmp_path / "ray", engine="ray", workers=2, quiet=True)
    for ender in enders:
        ender.join()
    assert len(ended) == 2, "they were never there to be ended"
    # A later run may well have been begun by the process that took an earlier one up.
    assert all(int((folder / ".lock").read_text()) not in (ended[folder], os.getpid()) for folder in folders)
    assert [stable(r["metrics"]) for r in results] == [stable(r["metrics"]) for r in whole]
    assert finished_in(tmp_path / "ray") == finished_in(tmp_path / "alone")
    logs = [[(tmp_path / how / f.relative_to(tmp_path / "ray") / "fit/metrics.csv").read_text() for f in folders]
            for how in ("ray", "alone")]  # fmt: skip
    assert logs[0] == logs[1]


def test_interrupted_runs_save_and_go_on(tmp_path: Path, cluster: str) -> None:
    endless = {**LONG, "updates": 200_000}  # a cancelled task may hear of it a second later
    recipe = {"method": "supervised", "student": QUICK["student"], "data": "digits", "fit": endless}
    jobs = [Job(recipe, seed, "x", "x") for seed in (0, 1)]

    def interrupt() -> None:
        for _ in range(4800):
            if list(tmp_path.glob("x/seed-*/fit/checkpoint.pt")):  # the other's process may need longer to start
                signal.raise_signal(signal.SIGINT)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_all(jobs, tmp_path, engine="ray", workers=2, quiet=True)
    thread.join()
    assert not list(tmp_path.glob("x/seed-*/fit/result.json"))
    states = [torch.load(file, weights_only=True)["update"] for file in tmp_path.glob("x/seed-*/fit/checkpoint.pt")]
    time.sleep(0.5)
    after = [torch.load(file, weights_only=True)["update"] for file in tmp_path.glob("x/seed-*/fit/checkpoint.pt")]
    assert after == states, "nobody waits for it, and it trains on"
    assert states
    assert all(0 < update < endless["updates"] for update in states)


def test_a_process_that_always_dies_is_given_up(tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "RETRIES", 1)
    with pytest.raises(LimbeckError, match="a task lost its process 2 times"):
        list(on_ray.spread(os._exit, [1], workers=1, shared=tmp_path))


def test_ctrl_c_is_not_lost_in_a_callback(tmp_path: Path, cluster: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    done = []

    def work() -> None:
        for number, _ in on_ray.spread(abs, [-1, -2, -3], workers=1, shared=tmp_path):
            done.append(number)
            with contextlib.suppress(KeyboardInterrupt):  # as Ray's callbacks do
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [0]
    assert signal.getsignal(signal.SIGINT) is before


def stubborn(folder: Path, deaf: int) -> None:
    """Works on although it is interrupted, ``deaf`` times."""
    heard = 0

    def hear(*_: object) -> None:
        nonlocal heard
        heard += 1

    before = signal.signal(signal.SIGINT, hear)
    while heard <= deaf:
        (folder / "working").touch()
        time.sleep(0.01)
    signal.signal(signal.SIGINT, before)
    (folder / "heard").touch()


@pytest.mark.parametrize(("deaf", "seconds"), [(1, 60.0), (1000, 6.0)])
def test_who_does_not_hear_is_told_again_and_ended_at_last(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch, deaf: int, seconds: float
) -> None:
    monkeypatch.setattr(on_ray, "_STOPPING", seconds)
    monkeypatch.setattr(on_ray, "_AGAIN", 2.0)
    working = tmp_path / "working"

    def interrupt() -> None:
        while not working.exists():
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(on_ray.spread(partial(stubborn, deaf=deaf), [tmp_path], workers=1, shared=tmp_path))
    thread.join()
    assert (tmp_path / "heard").exists() == (deaf == 1)
    for _ in range(30):
        last = working.stat().st_mtime_ns
        time.sleep(1)
        if working.stat().st_mtime_ns == last:
            return
    pytest.fail("nobody waits for it, and it works on")
