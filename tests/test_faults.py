"""What a person or a machine can break: kills, full disks, wrong words and wrong data."""

import hashlib
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from limbeck.cli import main
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.classification.ps_kd import PSKD
from limbeck.models import Classifier, build
from limbeck.stages.files import locked
from limbeck.verbs.run import run

from .stages.fits import KilledError, dying, fit, settings, weights_of
from .stages.toys import small

CNN = {"name": "cnn", "width": 2, "norm": "none", "dropout": 0.2}
FIT = {"updates": 250, "batch_size": 32, "checkpoint_seconds": 0.02, "log_every": 10, "accelerator": "cpu"}
RECIPE = {
    "method": "kd",
    "data": {"name": "digits", "view": "weak"},
    "student": CNN,
    "fit": FIT,
    "teacher": {"method": "supervised", "student": {**CNN, "width": 3}},
}
SHORT: dict[str, Any] = {**RECIPE, "fit": {**FIT, "updates": 3, "evaluations": 1}}
STAGES = ("teacher-fit", "fit")


def words(folder: Path, recipe: dict[str, Any] = RECIPE) -> list[str]:
    """The words of a command that runs in ``folder``/run."""
    path = folder / "kd.yaml"
    folder.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(recipe))
    return ["run", str(path), "--out", str(folder), "--name", "run", "--quiet", "--no-report"]


def hashes(folder: Path) -> list[str]:
    models = [folder / "run" / "seed-0" / stage / "model" / "model.safetensors" for stage in STAGES]
    return [hashlib.sha256(model.read_bytes()).hexdigest() for model in models]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("unbroken")
    assert main(words(folder)) == 0
    return hashes(folder)


def start(folder: Path, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "limbeck", *words(folder), *more],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 100
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def test_killed_at_random_instants(tmp_path: Path, unbroken: list[str]) -> None:
    draw = random.Random()
    for stage in STAGES:
        process = start(tmp_path)
        wait_for(tmp_path / "run" / "seed-0" / stage / "checkpoint.pt", process)
        delay = draw.uniform(0, 0.5)
        time.sleep(delay)
        process.kill()
        process.communicate()
        print(f"killed {delay:.3f} s after the first checkpoint of {stage}: {process.returncode}")
        assert process.returncode in ((-signal.SIGKILL,) if stage == "teacher-fit" else (-signal.SIGKILL, 0))
    assert main(words(tmp_path)) == 0
    assert hashes(tmp_path) == unbroken
    assert not list(tmp_path.rglob("checkpoint.pt*"))


@pytest.mark.parametrize(
    ("number", "more"), [(signal.SIGINT, ("--fit.workers", "1")), (signal.SIGTERM, ())], ids=["ctrl-c", "sigterm"]
)
def test_stopped_cleanly_and_continued(
    tmp_path: Path, unbroken: list[str], number: signal.Signals, more: tuple[str, ...]
) -> None:
    process = start(tmp_path, "--teacher.fit.checkpoint_seconds", "0.02", *more)
    checkpoint = tmp_path / "run" / "seed-0" / "teacher-fit" / "checkpoint.pt"
    wait_for(checkpoint, process)
    os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    stopped = re.fullmatch(
        r"\s*limbeck: teacher-fit (?:stopped after update (\d+) of 250|is finished); "
        r"the same command goes on from there\n",
        err,
    )
    assert stopped, err
    assert "Traceback" not in out
    if stopped[1]:
        assert torch.load(checkpoint, weights_only=True)["update"] == int(stopped[1])
    assert main(words(tmp_path)) == 0
    assert hashes(tmp_path) == unbroken


# --- disks


@contextmanager
def limited_file_size(size: int) -> Iterator[None]:
    """No file may grow beyond ``size``; Python ignores the signal, so that writing fails with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Every byte of ``disk`` is taken."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as handle:
        try:
            while True:
                handle.write(bytes(4096))
        except OSError:
            pass
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kind", ["full disk", "largest file"])
def test_a_checkpoint_that_cannot_be_saved(
    tmp_path: Path, digits: ImageData, kind: str, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue("disk") if kind == "full disk" else tmp_path / "disk"
    how = settings()
    whole = fit(tmp_path / "whole", PSKD(small(digits)), digits, how)
    with pytest.raises(KilledError):
        fit(place, dying(PSKD(small(digits)), 6), digits, how)
    checkpoint = place / "fit" / "checkpoint.pt"
    before = checkpoint.read_bytes()
    with full(place) if kind == "full disk" else limited_file_size(8192):
        with pytest.raises(LimbeckError) as caught:
            fit(place, PSKD(small(digits)), digits, how)
        assert checkpoint.read_bytes() == before
        assert not checkpoint.with_name("checkpoint.pt.part").exists()
    reason = "No space left on device" if kind == "full disk" else "File too large"
    assert re.fullmatch(
        rf"cannot save \S+: {reason}; what was saved before is intact\. Make room .*", str(caught.value)
    )
    assert weights_of(fit(place, PSKD(small(digits)), digits, how)) == weights_of(whole)


def test_an_artefact_that_cannot_be_saved(tmp_path: Path, digits: ImageData) -> None:
    how = settings(checkpoint_seconds=1e9)
    with limited_file_size(4096), pytest.raises(LimbeckError, match="File too large") as caught:
        fit(tmp_path, PSKD(small(digits)), digits, how)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "fit" / "result.json").exists()
    fit(tmp_path, PSKD(small(digits)), digits, how)
    assert (tmp_path / "fit" / "result.json").exists()


@pytest.mark.parametrize("temporary", ["/dev/shm", "/nowhere"])
def test_the_temporary_folder_plays_no_part(
    tmp_path: Path, digits: ImageData, temporary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if temporary == "/dev/shm" and not Path(temporary).is_dir():
        pytest.skip("no /dev/shm here")
    monkeypatch.setattr(tempfile, "tempdir", temporary)
    with pytest.raises(KilledError):
        fit(tmp_path, dying(PSKD(small(digits)), 6), digits, settings())
    assert torch.load(tmp_path / "fit" / "checkpoint.pt", weights_only=True)["update"] == 5
    fit(tmp_path, PSKD(small(digits)), digits, settings())


# --- run folders


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert err.startswith("limbeck: ")
    assert err.count("\n") == 1
    assert out == ""
    return err


def test_two_runs_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path / "run" / "seed-0"):
        err = refused(words(tmp_path, SHORT), capsys)
    assert f"run/seed-0 is in use by another run (process {os.getpid()}); wait for it" in err
    assert main(words(tmp_path, SHORT)) == 0


def test_a_killed_runs_workers_are_waited_for(tmp_path: Path) -> None:
    import fcntl

    handle = (tmp_path / ".lock").open("w")
    fcntl.flock(handle, fcntl.LOCK_EX)
    handle.write("999999999")  # beyond the largest process number: the owner is dead
    handle.flush()
    threading.Timer(0.3, handle.close).start()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_folder_of_another_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path, SHORT)) == 0
    err = refused([*words(tmp_path, SHORT), "--alpha", "0.5", "--teacher.fit.updates", "4"], capsys)
    assert "belongs to another recipe (alpha: 0.9 there, 0.5 here; teacher.fit.updates: 3 there, 4 here)" in err
    assert "choose another --name" in err
    # What changes no result is no other recipe.
    assert main([*words(tmp_path, SHORT), "--fit.workers", "1", "--teacher.fit.log_every", "3"]) == 0


def test_a_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = tmp_path / "run" / "seed-0" / "teacher-fit"
    stage.mkdir(parents=True)
    (stage / "checkpoint.pt").write_bytes(b"PK\x03\x04 once upon a time")
    err = refused(words(tmp_path, SHORT), capsys)
    assert "teacher-fit/checkpoint.pt cannot be read" in err
    assert "delete it to start this stage again" in err


# --- classes


def teacher_of(data: ImageData, classes: tuple[str, ...]) -> Classifier:
    """A linear teacher whose outputs are named ``classes``: the nearest mean of each."""
    images = data.train.fetch(torch.arange(len(data.train)))["image"].flatten(1)
    means = {name: images[data.train.labels == number].mean(0) for number, name in enumerate(data.classes)}
    rows = torch.stack([means.get(name, torch.zeros(64)) for name in classes])
    head = torch.nn.Linear(64, len(classes))
    with torch.no_grad():
        head.weight.copy_(2 * rows)
        head.bias.copy_(-rows.square().sum(1) - 100.0 * torch.tensor([name not in means for name in classes]))
    return Classifier(torch.nn.Sequential(torch.nn.Flatten(), head), classes, channels=1, size=8)


def test_teacher_with_other_classes_through_run(tmp_path: Path, digits: ImageData) -> None:
    def metrics(name: str, classes: tuple[str, ...]) -> dict[str, float]:
        student = build("cnn", digits.task, width=2)
        teacher = teacher_of(digits, classes)
        fit = {"updates": 1, "accelerator": "cpu"}
        recipe = {"method": "kd"}
        return run(
            recipe, student=student, teacher=teacher, data=digits, fit=fit, out=tmp_path, name=name, quiet=True
        ).metrics

    same = metrics("same", digits.classes)["teacher/accuracy"]
    assert same > 0.8
    assert metrics("mixed", (*reversed(digits.classes), "ten"))["teacher/accuracy"] == same
    with pytest.raises(LimbeckError, match=r"does not know the classes \['9'\]: student \['0', .* teacher \['8', '7'"):
        metrics("fewer", tuple(reversed(digits.classes[:9])))


# --- words and data


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["runn"], "unknown verb 'runn'. Did you mean 'run'?"),
        (["run", "pskd"], "unknown method 'pskd'. Did you mean 'ps-kd'?"),
        (["run", "kd", "--recipe", "papers"], "kd has no recipe 'papers'."),
        (["run", "kd", "--alhpa", "1"], "unknown key 'alhpa'. Did you mean 'alpha'?"),
        (["run", "kd", "--fit.epoch", "1"], "unknown key 'fit.epoch'. Did you mean 'epochs'?"),
        (["run", "kd", "--data", "digit"], "'digit'"),
        (["run", "kd", "--student", "cnnn"], "'cnnn'"),
        (["run", "kd", "--fit.optimizer", "sdg"], "unknown optimizer 'sdg'. Did you mean 'sgd'?"),
        (
            ["run", "kd", "--fit.optimizer.momentun", "0"],
            "unknown key 'fit.optimizer.momentun'. Did you mean 'momentum'?",
        ),
        (["run", "kd", "--fit.schedule", "cosin"], "unknown schedule 'cosin'. Did you mean 'cosine'?"),
        (["run", "kd", "--alpha", "much"], "alpha"),
        (["run", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_word_that_is_not_known(
    tmp_path: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    err = refused(argv, capsys)
    assert message in err
    if message in ("'digit'", "'cnnn'"):
        assert f"Did you mean '{'digits' if 'digit' in message else 'cnn'}'?" in err
    assert not list(tmp_path.iterdir()), "nothing may be written for a command that cannot run"


def npz(folder: Path, *, nan: bool = False, label: int = 0) -> list[str]:
    generator = np.random.default_rng(0)
    images = generator.random((60, 8, 8)).astype("float32")
    labels = np.arange(60) % 3
    if nan:
        images[17, 2, 3] = np.nan
    labels[5] = label or labels[5]
    path = folder / "data.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:30], y_test=np.arange(30) % 3)
    return ["--data", "npz", "--data.path", str(path)]


def photos(folder: Path, *, corrupt: bool = False, empty: bool = False) -> list[str]:
    root = folder / "photos"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(12):
            image = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype="uint8")
            Image.fromarray(image).save(root / name / f"{number}.png")
    if corrupt:
        path = root / "dog" / "3.png"
        path.write_bytes(path.read_bytes()[:60])
    if empty:
        (root / "emu").mkdir()
    return ["--data", "folder", "--data.root", str(root), "--data.size", "8"]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda folder: npz(folder, label=-7), "-7"),
        (lambda folder: npz(folder, nan=True), "17"),
        (lambda folder: photos(folder, corrupt=True), "3.png"),
        (lambda folder: photos(folder, empty=True), "emu"),
    ],
    ids=["label out of range", "NaN", "corrupt image", "empty class"],
)
def test_data_that_cannot_be_used(tmp_path: Path, make: Any, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "run",
        "supervised",
        *make(tmp_path),
        "--out",
        str(tmp_path / "runs"),
        "--name",
        "run",
        "--student.width",
        "2",
    ]
    assert named in refused([*argv, "--fit.updates", "2"], capsys)
    assert not (tmp_path / "runs" / "run" / "seed-0" / "fit").exists()


class Payload:
    """What a malicious file would do."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.witness,))


def test_a_pickle_in_a_saved_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"method": "supervised", "data": {"name": "digits"}, "student": CNN, "fit": SHORT["fit"]}
    assert main(words(tmp_path, recipe)) == 0
    model = tmp_path / "run" / "seed-0" / "fit" / "model"
    assert main(["evaluate", str(model), "--data", "digits"]) == 0
    whole, witness = (model / "model.safetensors").read_bytes(), tmp_path / "witness"
    (model / "model.safetensors").write_bytes(pickle.dumps(Payload(witness)))
    assert "model.safetensors" in refused(["evaluate", str(model), "--data", "digits"], capsys)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(witness)))
    assert "pytorch_model.bin" in refused(["evaluate", str(model), "--data", "digits"], capsys)
    assert not witness.exists()
    (model / "pytorch_model.bin").unlink()
    (model / "model.safetensors").write_bytes(whole)
    assert main(["evaluate", str(model), "--data", "digits"]) == 0
