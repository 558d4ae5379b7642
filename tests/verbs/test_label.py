"""The verb label, and runs that read what it wrote in the place of a teacher."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck import cli, models
from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.data.store import LabelStore
from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier
from limbeck.verbs.label import label
from limbeck.verbs.run import Run, run
from tests.methods.tables import student

FEW = {"name": "digits", "labels_per_class": 8}
EPOCHS = 3


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, trained or not: its answers count, not their worth."""
    folder = tmp_path_factory.mktemp("teacher")
    models.save(student(load("digits", 0)), folder)
    return folder


def distil(out: Path, seed: int = 0, **overrides: Any) -> Run:
    fit = {"epochs": EPOCHS, "batch_size": 16, "evaluations": 1, "updates": None}
    return run(
        "kd",
        seed=seed,
        out=out,
        quiet=True,
        **{"data": FEW, "student": {"name": "mlp", "hidden": 16}, "fit": fit, **overrides},
    )


def weights(done: Run) -> dict[str, torch.Tensor]:
    return dict(done.model.state_dict())


@pytest.mark.parametrize("transfer_set", ["labeled", "all"])
def test_training_from_a_dense_store_is_training_with_the_live_teacher(
    teacher: Path, tmp_path: Path, transfer_set: str
) -> None:
    """Equal views in equal order, and float32 logits that differ by the order of sums in larger batches."""
    found = label(teacher, "digits", labels_per_class=8, out=tmp_path / "store", views=EPOCHS,
                  storage="float32", quiet=True)  # fmt: skip
    assert set(found) == {"validation/accuracy", "agreement", "bytes_a_label"}
    live = distil(tmp_path, teacher=str(teacher), transfer_set=transfer_set)
    stored = distil(tmp_path, teacher={"name": "store", "folder": str(tmp_path / "store")}, transfer_set=transfer_set)
    for name, value in weights(live).items():
        torch.testing.assert_close(weights(stored)[name], value, atol=2e-5, rtol=1e-4)
    assert stored.metrics["nll"] == pytest.approx(live.metrics["nll"], rel=1e-4)
    assert "teacher/accuracy" in live.metrics
    assert "teacher/accuracy" not in stored.metrics, "stored labels cannot be measured on test images"
    other = distil(tmp_path, seed=1, teacher=str(teacher), transfer_set=transfer_set)
    assert not torch.allclose(next(iter(weights(other).values())), next(iter(weights(live).values())), atol=1e-3)


def test_fewer_views_are_seen_again_and_again(teacher: Path, tmp_path: Path) -> None:
    label(teacher, "digits", labels_per_class=8, out=tmp_path / "store", views=2, quiet=True)
    from limbeck.teachers.stored import store

    data = load("digits", 0, labels_per_class=8)
    assert isinstance(data, ImageData)
    replayed = store(data.task, folder=str(tmp_path / "store")).replay(data)
    batch = replayed.train.fetch(torch.arange(5))
    seen = [
        replayed.train.augment(dict(batch), {"image": "weak"}, seed=9, epochs=torch.full((5,), epoch), flip=False)
        for epoch in range(4)
    ]
    assert torch.equal(seen[0]["image"], seen[2]["image"])
    assert torch.equal(seen[1]["image"], seen[3]["image"])
    assert not torch.equal(seen[0]["image"], seen[1]["image"])


def test_killed_labelling_goes_on_and_views_are_added(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.verbs.label.ROWS_A_FILE", 64)
    options: dict[str, Any] = {"labels_per_class": 8, "batch_size": 32, "quiet": True, "top_k": 3, "seed": 4}
    label(teacher, "digits", out=tmp_path / "whole", views=2, **options)
    calls = 0
    forward = Classifier.forward

    def interrupted(self: Classifier, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(Classifier, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        label(teacher, "digits", out=tmp_path / "killed", views=2, **options)
    with pytest.raises(LimbeckError, match="labelling was interrupted; the same command goes on"):
        LabelStore.open(tmp_path / "killed")
    done = len(list((tmp_path / "killed").glob("rows-*")))
    assert done > 3
    before = calls
    label(teacher, "digits", out=tmp_path / "killed", views=2, **options)
    assert calls - before < 90, "what is finished is not labelled again"
    label(teacher, "digits", out=tmp_path / "one", views=1, **options)
    label(teacher, "digits", out=tmp_path / "one", views=2, **options)
    whole = LabelStore.open(tmp_path / "whole")
    rows = torch.arange(whole.schema.rows)
    for name in ("killed", "one"):
        assert torch.equal(LabelStore.open(tmp_path / name).read(rows).logits, whole.read(rows).logits)


def test_stored_labels_serve_who_needs_logits_and_nobody_else(teacher: Path, tmp_path: Path) -> None:
    label(teacher, "digits", labels_per_class=8, out=tmp_path / "store", hard=True, quiet=True)
    block = {"name": "store", "folder": str(tmp_path / "store")}
    with pytest.raises(LimbeckError, match=r"tent asks its teacher for more than logits .* they serve kd"):
        run("tent", out=tmp_path, quiet=True, data={"name": "corruptions"}, teacher=block)
    with pytest.raises(LimbeckError, match="student must be a Classifier, and store is a Stored"):
        run("supervised", out=tmp_path, quiet=True, data=FEW, student=block)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"name": "digits", "labels_per_class": 9}}, "holds no label of|is not the one that was labelled"),
        ({"data": {**FEW, "view": "strong"}}, "holds labels of the view 'weak' .* data.view is 'strong'"),
        ({"seed": 1}, "holds no label of"),
        ({"transfer_set": "all"}, "label them all"),
        ({"teacher": {"name": "store", "folder": "nowhere"}}, r"nowhere holds no store\.json"),
        ({"teacher": {"name": "store"}}, "folder"),
        ({"teacher": {"name": "store", "folder": "x", "tail": "bucket"}}, "smooth"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_training(
    teacher: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    label(teacher, "digits", labels_per_class=8, out=tmp_path / "store", samples="labeled", quiet=True)
    block = {"name": "store", "folder": str(tmp_path / "store")}
    with pytest.raises(LimbeckError, match=message):
        distil(tmp_path, **{"teacher": block, **changes})
    assert not list(tmp_path.glob("kd-*/seed-*/fit/metrics.csv"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": 0}, "views is 0"),
        ({"top_k": 11}, "top_k is 11; it must lie between 1 and the 10 classes"),
        ({"top_k": 2, "hard": True}, "give either hard or top_k"),
        ({"samples": "unlabeled", "labels_per_class": None}, "no unlabelled samples"),
        ({"data": "shakespeare"}, "label works on images|shakespeare"),
    ],
)
def test_what_cannot_be_labelled(teacher: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    options = {"data": "digits", "labels_per_class": 8, **changes}
    if options["data"] != "digits":
        del options["labels_per_class"]
    with pytest.raises(LimbeckError, match=message):
        label(teacher, options.pop("data"), out=tmp_path / "store", quiet=True, **options)
    assert not (tmp_path / "store/store.json").exists()


def test_on_the_command_line(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["label", str(teacher), "--data", "digits", "--data.labels_per_class", "8", "--out", "store"]
    assert cli.main([*words, "--top-k", "5", "--views", "2"]) == 0
    said = capsys.readouterr()
    assert "the model's validation accuracy is" in said.err
    assert "labels of 15 bytes each" in said.out
    assert json.loads((tmp_path / "store/store.json").read_text())["schema"]["views"] == 2
    assert cli.main([*words, "--hard"]) == 2
    assert "store holds other labels (views 2 instead of 1, kept 'top_k' instead of 'hard'" in capsys.readouterr().err
    assert cli.main(["label", str(teacher), "--out", "other"]) == 2
    assert "which data?" in capsys.readouterr().err
    assert cli.main([*words, "--student", "cnn"]) == 2
    assert "limbeck label has no option --student" in capsys.readouterr().err
