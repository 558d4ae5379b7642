"""RAD: the loss on true and bought labels, and whole runs on digits against a recount of every round."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.data.soft_samples import SoftSamples
from limbeck.errors import LimbeckError
from limbeck.labels.query import k_center, largest, maxmin_game
from limbeck.labels.scores import informativeness
from limbeck.methods.classification.robust_active_distillation import ActiveDistillation, RobustActiveDistillation
from limbeck.methods.method import Ready
from limbeck.models.classifier import Classifier
from limbeck.stages.digest import digest
from limbeck.stages.fit import Fit
from limbeck.stages.progress import Reporter
from limbeck.stages.score import TABLE, Score, read
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, Stage, drive
from tests.methods.programs import run_stages
from tests.methods.tables import Table, assert_equal, batch, log_softmax, onehot, softmax, student, value
from tests.stages.test_label import KillAt, KilledError

FIT = FitSettings(updates=12, batch_size=20, accelerator="cpu", evaluations=1)


@pytest.fixture(scope="module")
def few() -> ImageData:
    """Four labels a class, the rest is the pool."""
    return load("digits", seed=0, labels_per_class=4, view="none")


@pytest.fixture
def teacher(few: ImageData) -> Classifier:
    """Trained on the labelled samples for a moment: right on most of the pool."""
    network = student(few, seed=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    everything = few.train.fetch(torch.arange(len(few.train)))
    for _ in range(15):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(everything).logits, everything["label"]).backward()
        optimizer.step()
    return network.eval()


def method(data: ImageData, teacher: Classifier, **changes: Any) -> RobustActiveDistillation:
    given: dict[str, Any] = {"queries": 30, "rounds": 3, **changes}
    return RobustActiveDistillation(data, student(data), Ready(teacher), FIT, **given)


def run(
    made: RobustActiveDistillation, folder: Path, reporter: Reporter | None = None
) -> tuple[dict[str, Stage], dict[str, float]]:
    """The stages, and the metrics of the last."""
    stages = run_stages(made, folder, reporter=reporter)
    return stages, json.loads((folder / "fit/result.json").read_text())["metrics"]


def asked(stages: dict[str, Stage], number: int) -> list[int]:
    stage = stages[f"query-{number}"]
    assert isinstance(stage, Score)
    return stage.samples.indices.tolist()


def test_loss_is_hard_on_labels_and_soft_on_answers() -> None:
    z, t = np.random.default_rng(0).normal(size=(2, 4, 3))
    targets = np.concatenate([onehot([2, 0], 3), softmax(t[2:])])
    some = {**batch([2, 0, -1, -1]), "target": torch.tensor(targets), "hidden_label": torch.tensor([2, 0, 1, 1])}
    objective = ActiveDistillation(Table(z), {})
    found = objective.terms(some)
    expected = -(targets * log_softmax(z)).sum(-1).mean()
    assert value(found["ce"]).item() == pytest.approx(expected, rel=1e-12)
    (precision,) = objective.observed["precision"]
    assert value(precision).item() == pytest.approx((t[2:].argmax(-1) == 1).mean())


@pytest.mark.parametrize(
    ("rule", "gain"),
    [
        ("rad", "margin"),
        ("rad", "entropy"),
        ("greedy", "entropy"),
        ("half", "margin"),
        ("random", "margin"),
        ("coreset", "margin"),
    ],
)
def test_rounds_against_a_recount(few: ImageData, teacher: Classifier, tmp_path: Path, rule: Any, gain: Any) -> None:
    assert few.unlabeled is not None
    before = digest(teacher)
    stages, metrics = run(method(few, teacher, rule=rule, gain=gain, rounds=2), tmp_path)
    kinds = ["round", *(["known"] if rule == "coreset" else []), "pool", "query"]
    assert list(stages) == [*(f"{kind}-{n}" for n in range(2) for kind in kinds), "fit"]
    assert digest(teacher) == before
    # Nobody is asked about twice, and the pool shrinks.
    every = asked(stages, 0) + asked(stages, 1)
    assert len(set(every)) == 60
    assert set(every) <= set(few.unlabeled.indices.tolist())
    second = stages["pool-1"]
    assert isinstance(second, Score)
    assert set(second.samples.indices.tolist()) == set(few.unlabeled.indices.tolist()) - set(asked(stages, 0))
    # The choice of each round, from what the student said of the pool.
    for number in range(2):
        pool = stages[f"pool-{number}"]
        assert isinstance(pool, Score)
        table = read(tmp_path / pool.name / TABLE)
        gains = informativeness(table["probabilities"], gain)
        chosen = asked(stages, number)
        if rule == "greedy":
            assert chosen == pool.samples.indices[largest(gains, 30)].tolist()
        elif rule == "half":
            assert chosen[:15] == pool.samples.indices[largest(gains, 15)].tolist()
        elif rule == "coreset":
            known = read(tmp_path / f"known-{number}" / TABLE)["features"]
            assert chosen == pool.samples.indices[k_center(table["features"], known, 30)].tolist()
        elif rule == "rad":
            m = metrics["teacher_error"] * len(gains)
            support = pool.samples.indices[maxmin_game(gains, m).probabilities > 0].tolist()
            assert len(support) >= 30
            assert set(chosen) <= set(support)
    # What the last student was trained on, and what is reported of it.
    last = stages["fit"]
    assert isinstance(last, Fit)
    train = last.data.train
    assert isinstance(train, SoftSamples)
    assert train.indices.tolist() == few.train.indices.tolist() + every
    assert torch.equal(train.targets[:40], torch.eye(10)[few.train.labels])
    with torch.no_grad():
        said = teacher(train.fetch(torch.arange(40, 100))).logits
    torch.testing.assert_close(train.targets[40:], said.softmax(-1))
    assert train.hidden_labels is not None
    wrong = (said.argmax(-1) != train.hidden_labels[40:]).float().mean()
    assert metrics["wrong_labels"] == pytest.approx(float(wrong))
    assert metrics["queries"] == 60


def test_wrong_answers_are_expected_among_what_is_left(
    few: ImageData, teacher: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """m is the error times the number of samples that nobody was asked about yet."""
    from limbeck.methods.classification import robust_active_distillation as module

    seen = []
    whole = module.game_queries

    def watched(gains: torch.Tensor, m: float, *rest: Any) -> torch.Tensor:
        seen.append((len(gains), m))
        return whole(gains, m, *rest)

    monkeypatch.setattr(module, "game_queries", watched)
    run(method(few, teacher, rounds=2, error_rate=0.25), tmp_path)
    assert few.unlabeled is not None
    count = len(few.unlabeled)
    assert seen == [(count, 0.25 * count), (count - 30, 0.25 * (count - 30))]


def test_error_of_the_teacher_and_gain_of_the_questions(few: ImageData, teacher: Classifier, tmp_path: Path) -> None:
    stages, metrics = run(method(few, teacher, rule="greedy"), tmp_path)
    with torch.no_grad():
        everything = few.validation.fetch(torch.arange(len(few.validation)))
        wrong = (teacher(everything).logits.argmax(-1) != everything["label"]).float().mean()
    assert metrics["teacher_error"] == pytest.approx(float(wrong))
    assert 0.01 < float(wrong) < 0.9
    gains = []
    for number in range(3):
        pool = stages[f"pool-{number}"]
        assert isinstance(pool, Score)
        found = informativeness(read(tmp_path / pool.name / TABLE)["probabilities"])
        gains += found[torch.isin(pool.samples.indices, torch.tensor(asked(stages, number)))].tolist()
    assert metrics["queried_gain"] == pytest.approx(np.mean(gains))
    assert "wrong_labels" not in json.loads((tmp_path / "round-0/result.json").read_text())["metrics"]


def test_a_teacher_that_never_errs_or_always_does_is_asked_greedily(
    few: ImageData, teacher: Classifier, tmp_path: Path
) -> None:
    found = {
        name: asked(run(method(few, teacher, rounds=1, **options), tmp_path / name)[0], 0)
        for name, options in {
            "greedy": {"rule": "greedy"},
            "never": {"error_rate": 0.0},
            "always": {"error_rate": 1.0},
            "costly": {"error_rate": 0.5, "wrong_loss": 5.0},
            "half": {"error_rate": 0.5},
        }.items()
    }
    assert found["never"] == found["always"] == found["costly"] == found["greedy"]
    assert found["half"] != found["greedy"]


def test_settings_that_matter(few: ImageData, teacher: Classifier, tmp_path: Path) -> None:
    warm, _ = run(method(few, teacher, rounds=1, rule="greedy", temperature=4.0), tmp_path / "warm")
    plain, _ = run(method(few, teacher, rounds=1, rule="greedy"), tmp_path / "plain")
    assert asked(warm, 0) == asked(plain, 0)
    said = [read(tmp_path / name / "query-0" / TABLE)["probabilities"] for name in ("warm", "plain")]
    torch.testing.assert_close(said[0], (said[1].log() / 4).softmax(-1))
    one, _ = run(method(few, teacher, rounds=1, sampling="rounding"), tmp_path / "rounding")
    other, _ = run(method(few, teacher, rounds=1), tmp_path / "multinomial")
    assert asked(one, 0) != asked(other, 0)


def test_every_round_starts_from_the_same_weights(few: ImageData, teacher: Classifier, tmp_path: Path) -> None:
    made = method(few, teacher, rounds=2)
    first = {name: tensor.clone() for name, tensor in made.student.state_dict().items()}
    starts = []

    def look(stage: Stage) -> None:
        if isinstance(stage, Fit):
            starts.append({name: tensor.clone() for name, tensor in stage.objective.student.state_dict().items()})

    run_stages(made, tmp_path, look=look)
    assert len(starts) == 3
    for start in starts:
        assert_equal(start, first)


@pytest.mark.parametrize("stage", ["pool-1", "query-1"])
def test_killed_run_asks_the_same_and_ends_with_the_same_student(
    few: ImageData, teacher: Classifier, tmp_path: Path, stage: str
) -> None:
    class KillIn(KillAt):
        here = False

        def stage(self, name: str, done: int, total: int) -> Any:
            self.here = name == stage
            return super().stage(name, done, total)

        def advance(self, done: int, loss: float | None) -> None:
            if self.here:
                raise KilledError

    whole, _ = run(method(few, teacher, rounds=2), tmp_path / "whole")
    with pytest.raises(KilledError):
        run(method(few, teacher, rounds=2), tmp_path / "killed", KillIn(0))
    again, _ = run(method(few, teacher, rounds=2), tmp_path / "killed")
    assert [asked(again, n) for n in range(2)] == [asked(whole, n) for n in range(2)]
    name = "fit/model/model.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_pool_without_known_truth(few: ImageData, teacher: Classifier, tmp_path: Path) -> None:
    assert few.unlabeled is not None
    pool = few.unlabeled.subset(range(len(few.unlabeled)))
    pool.hidden_labels = torch.full_like(pool.labels, -1)
    _, metrics = run(method(dataclasses.replace(few, unlabeled=pool), teacher, rounds=1), tmp_path)
    assert "wrong_labels" not in metrics
    assert metrics["queries"] == 30


def test_whole_pool_and_no_round_at_all(few: ImageData, teacher: Classifier, tmp_path: Path) -> None:
    assert few.unlabeled is not None
    small = dataclasses.replace(few, unlabeled=few.unlabeled.subset(range(60)))
    stages, _ = run(method(small, teacher, rounds=2), tmp_path / "all")
    assert sorted(asked(stages, 0) + asked(stages, 1)) == sorted(small.unlabeled.indices.tolist())  # type: ignore[union-attr]
    stages, metrics = run(method(few, teacher, rounds=0), tmp_path / "none")
    assert list(stages) == ["fit"]
    assert "queried_gain" not in metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": 0}, "queries is 0"),
        ({"queries": 5000}, "the pool has"),
        ({"error_rate": 1.5}, r"error_rate is 1\.5"),
        ({"wrong_loss": -1.0}, r"wrong_loss is -1\.0"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
    ],
)
def test_wrong_arguments(few: ImageData, teacher: Classifier, change: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        method(few, teacher, **change)


def test_a_pool_is_needed(digits: ImageData, nearest_mean: Classifier) -> None:
    with pytest.raises(LimbeckError, match="labels_per_class"):
        method(digits, nearest_mean)


@pytest.mark.parametrize("rule", ["rad", "greedy", "half", "random", "coreset"])
def test_dry_run_knows_the_stages(few: ImageData, teacher: Classifier, tmp_path: Path, rule: Any) -> None:
    context = Context(tmp_path / "none", "rad", seed=0, dry_run=True)
    drive(method(few, teacher, rule=rule, rounds=1).program(), context)
    known = ["known-0"] if rule == "coreset" else []
    assert [row["stage"] for row in context.estimates] == ["round-0", *known, "pool-0", "query-0", "fit"]
    assert not (tmp_path / "none").exists()
