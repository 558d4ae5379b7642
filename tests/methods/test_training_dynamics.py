"""Trainings that are watched: the table against a recount, and that watching changes nothing."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.labels.scores import el2n
from limbeck.methods.classification.supervised import Supervised
from limbeck.methods.classification.training_dynamics import Rule, TrainingDynamics, watch
from limbeck.stages.objective import Batch
from limbeck.stages.progress import Reporter
from limbeck.stages.score import GradientNorms, Outputs, score
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, Program, drive
from limbeck.stages.watched_fit import Watched, WatchedFit
from tests.methods.tables import assert_equal, fit, small, student
from tests.stages.test_label import KillAt, KilledError

FIT: dict[str, Any] = {"batch_size": 40, "accelerator": "cpu", "evaluations": 1, "schedule": {"name": "constant"}}


def watched(
    objective: TrainingDynamics, data: ImageData, folder: Path, reporter: Reporter | None = None, **settings: Any
) -> Watched:
    def program() -> Program:
        return (yield WatchedFit("fit", objective, data, FitSettings(**{**FIT, **settings})))

    found: Watched = drive(program(), Context(folder, "test", seed=0, reporter=reporter or Reporter(quiet=True)))
    return found


@pytest.mark.parametrize("rule", ["none", "forgetting", "el2n", "grand"])
def test_watching_does_not_change_the_training(digits: ImageData, tmp_path: Path, rule: Rule) -> None:
    data = small(digits)
    found = watched(TrainingDynamics(student(data), rule), data, tmp_path, epochs=3)
    plain = fit(Supervised(student(data)), data, tmp_path / "plain", **FIT, updates=None, epochs=3)
    assert_equal(dict(found.model.state_dict()), plain)
    assert list(found.table) == ([] if rule == "none" else [rule])


@pytest.mark.parametrize("rule", ["el2n", "grand"])
def test_scores_are_those_of_the_ends_of_the_first_epochs(digits: ImageData, tmp_path: Path, rule: Rule) -> None:
    """With a constant rate a training of two epochs is the beginning of one of four."""
    data = small(digits)
    found = watched(TrainingDynamics(student(data), rule, checkpoints=2), data, tmp_path, epochs=4)
    each = []
    for epochs in (1, 2):
        network = student(data)
        fit(Supervised(network), data, tmp_path / str(epochs), **FIT, updates=None, epochs=epochs)
        if rule == "grand":
            each.append(score(GradientNorms(network), data.train)["gradient"])
        else:
            each.append(el2n(score(Outputs(network), data.train)["probabilities"], data.train.labels))
    torch.testing.assert_close(found.table[rule], (each[0] + each[1]) / 2)
    assert not torch.allclose(found.table[rule], each[0], rtol=0.01)


def test_a_training_shorter_than_an_epoch_is_scored_at_its_end(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    found = watched(TrainingDynamics(student(data), "el2n"), data, tmp_path, updates=2)
    said = score(Outputs(found.model), data.train)["probabilities"]
    torch.testing.assert_close(found.table["el2n"], el2n(said, data.train.labels))


class Recounted(TrainingDynamics):
    """Writes down every look."""

    looks: list[tuple[Tensor, Tensor]] = []  # noqa: RUF012

    def after_update(self, batch: Batch) -> None:
        super().after_update(batch)
        self.looks.append((batch["index"], batch["correct"]))


def test_forgetting_against_a_recount(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    Recounted.looks = []
    rate = {"name": "sgd", "lr": 0.3, "momentum": 0.9}
    found = watched(Recounted(student(data), "forgetting"), data, tmp_path, epochs=8, optimizer=rate).table[
        "forgetting"
    ]
    history: dict[int, list[bool]] = {int(index): [] for index in data.train.indices}
    for indices, correct in Recounted.looks:
        for index, right in zip(indices.tolist(), correct.tolist(), strict=True):
            history[index].append(right)
    assert {len(looks) for looks in history.values()} == {8}
    expected = [
        sum(a and not b for a, b in itertools.pairwise(looks)) if any(looks) else np.inf
        for looks in (history[int(index)] for index in data.train.indices)
    ]
    assert found.tolist() == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("rule", ["forgetting", "el2n"])
@pytest.mark.parametrize("at", [3, 7, 15])
def test_killed_fit_ends_with_the_same_table(digits: ImageData, tmp_path: Path, rule: Rule, at: int) -> None:
    data = small(digits)
    make = lambda: TrainingDynamics(student(data), rule, checkpoints=2)  # noqa: E731
    whole = watched(make(), data, tmp_path / "whole", epochs=3)
    with pytest.raises(KilledError):
        watched(make(), data, tmp_path / "killed", KillAt(at), epochs=3, checkpoint_seconds=0.0)
    assert not (tmp_path / "killed/fit/result.json").exists()
    again = watched(make(), data, tmp_path / "killed", epochs=3, checkpoint_seconds=0.0)
    assert torch.equal(again.table[rule], whole.table[rule])
    assert_equal(dict(again.model.state_dict()), dict(whole.model.state_dict()))
    # And once more, from the finished stage.
    assert torch.equal(watched(make(), data, tmp_path / "killed", epochs=3).table[rule], whole.table[rule])


def test_several_runs_start_from_weights_of_their_own(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    network = student(data)
    settings = FitSettings(**{**FIT, "epochs": 1})
    context = Context(tmp_path, "test", seed=0)
    found: Watched = drive(watch(network, data, settings, "el2n", 2, 3), context)
    assert context.stages == ["full-0", "full-1"]
    from limbeck import models
    from limbeck.stages.score import TABLE, read

    one, other = (models.load(tmp_path / name / "model") for name in context.stages)
    tables = [read(tmp_path / name / TABLE)["el2n"] for name in context.stages]
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True) if a.ndim > 1)
    assert_equal(dict(found.model.state_dict()), dict(one.state_dict()))
    torch.testing.assert_close(found.table["el2n"], (tables[0] + tables[1]) / 2)


def test_wrong_checkpoints(digits: ImageData) -> None:
    with pytest.raises(LimbeckError, match="checkpoints is 0"):
        TrainingDynamics(student(digits), "el2n", checkpoints=0)
