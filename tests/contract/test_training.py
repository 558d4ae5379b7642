"""What every method promises when it is trained. A new slug of the index is tested without a line written here."""

import copy
import csv
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from limbeck import models
from limbeck.methods.index import METHODS
from limbeck.models.model import Model
from limbeck.recipe import block_kinds, method_class, read, resolve
from limbeck.stages.digest import digest
from limbeck.stages.evaluation import evaluation
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch
from limbeck.verbs.run import Run, plain, run
from tests.contract import other_device
from tests.contract.exceptions import EXCEPTIONS
from tests.contract.training import (
    EVERY,
    SEED,
    UPDATES,
    KillAt,
    Killed,
    Trained,
    different,
    hidden,
    small_recipe,
    train,
    weights,
    with_other_hidden_labels,
)

WITH_TEACHER = [slug for slug in METHODS if "teacher" in block_kinds(method_class(slug)).values()]


@pytest.fixture(scope="module", params=METHODS)
def slug(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(autouse=True)
def _promised(request: pytest.FixtureRequest, slug: str) -> None:
    """Skip what a kind of method cannot promise, with the reason."""
    name = request.node.originalname
    reasons = EXCEPTIONS.get(name, {})
    reason = reasons.get(slug) or reasons.get(METHODS[slug].task)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def trained(slug: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One run, driven stage by stage."""
    return train(small_recipe(slug), tmp_path_factory.mktemp(slug))


@pytest.fixture(scope="module")
def again(slug: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, through the verb that users call, from a file as runs write it."""
    folder = tmp_path_factory.mktemp(f"{slug}-again")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain(small_recipe(slug)), sort_keys=False), encoding="utf-8")
    return run(folder / "recipe.yaml", seed=SEED, out=folder, quiet=True)


@pytest.fixture(scope="module")
def killed(slug: str, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed in the middle of its last stage."""
    folder = tmp_path_factory.mktemp(f"{slug}-killed")
    with pytest.raises(Killed):
        train(
            small_recipe(slug, checkpoint_seconds=0.0),
            folder,
            reporter=KillAt(UPDATES // 2, stage=trained.halves),
        )
    return folder


def test_learns(trained: Trained) -> None:
    last = trained.last if trained.fits else trained.stages[-1]
    metric, better = last.objective.progress if isinstance(last, Fit) else last.progress  # type: ignore[attr-defined]
    kept = last.objective.trained() if isinstance(last, Fit) else trained.model
    before, after = (_validation(trained, m)[metric] for m in (trained.untrained[last.name], kept))
    assert after > before if better == "higher" else after < before


def _validation(trained: Trained, model: Model) -> dict[str, float]:
    return evaluation(model.task).validate(model, trained.data, torch.device("cpu"))


def test_same_seed_same_weights(trained: Trained, again: Run) -> None:
    assert not different(weights(trained.model), weights(again.model))
    # Of every stage, the teacher's included.
    for stage in trained.fits:
        other = again.folder / stage.name / "model" / "model.safetensors"
        assert (trained.folder / stage.name / "model" / "model.safetensors").read_bytes() == other.read_bytes()


def test_other_seed_other_weights(slug: str, trained: Trained, tmp_path: Path) -> None:
    other = train(small_recipe(slug), tmp_path, seed=SEED + 1)
    names = {name for name, value in trained.model.named_parameters() if value.requires_grad}
    assert names <= set(different(weights(other.model), weights(trained.model)))


def test_saved_student_predicts_the_same(trained: Trained) -> None:
    last = trained.last if trained.fits else trained.stages[-1]
    kept = last.objective.trained() if isinstance(last, Fit) else trained.model
    loaded = models.load(trained.folder / last.name / "model")
    said = [_validation(trained, model) for model in (loaded, kept)]
    assert said[0]
    assert said[0] == said[1]


def test_hidden_labels_are_not_read(slug: str, trained: Trained, tmp_path: Path) -> None:
    data = trained.data
    assert hidden(data.train) or (data.unlabeled is not None and hidden(data.unlabeled))
    other = train(small_recipe(slug), tmp_path, data=with_other_hidden_labels)
    assert not different(weights(other.model), weights(trained.model))


@pytest.mark.parametrize("slug", WITH_TEACHER, indirect=True, scope="module")
def test_frozen_teachers_stay_outside(trained: Trained, killed: Path) -> None:
    objective, before = trained.last.objective, trained.before[trained.last.name]
    assert objective.teachers()
    optimised = {id(p) for group in objective.parameter_groups().values() for p in group}
    checkpoint = torch.load(killed / trained.last.name / "checkpoint.pt", weights_only=True)
    for name, teacher in objective.teachers().items():
        assert digest(teacher) == digest(before.teachers()[name])
        assert not any(module.training for module in teacher.modules())
        for parameter in teacher.parameters():
            assert parameter.grad is None
            assert not parameter.requires_grad
            assert id(parameter) not in optimised
        assert not [key for key in objective.state_dict() if key.startswith(f"{name}.")]
        assert not [key for key in checkpoint["objective"] if key.startswith(f"{name}.")]


def test_checkpoint_holds_what_trains(trained: Trained, killed: Path) -> None:
    checkpoint = torch.load(killed / trained.last.name / "checkpoint.pt", weights_only=True)
    assert checkpoint["update"] == UPDATES // 2 - 1
    assert checkpoint["objective"].keys() == trained.last.objective.state_dict().keys()
    # As it was: whoever receives an average of weights may train on, so that after the fit it counts as trainable.
    for name, group in trained.before[trained.last.name].parameter_groups().items():
        parameters = list(group)
        assert all(p.requires_grad for p in parameters)
        stored = [p for part in checkpoint[f"optimizer_{name}"]["param_groups"] for p in part["params"]]
        assert len(stored) == len(parameters)


def test_killed_run_ends_with_the_same_weights(slug: str, trained: Trained, killed: Path) -> None:
    resumed = train(small_recipe(slug), killed)
    assert not different(weights(resumed.model), weights(trained.model))
    if trained.fits:
        assert not different(weights(resumed.last.objective), weights(trained.last.objective))


def test_bf16_stays_finite(slug: str, tmp_path: Path) -> None:
    half = train(small_recipe(slug, updates=10, log_every=1, precision="bf16-mixed"), tmp_path)
    assert all(bool(value.isfinite().all()) for value in weights(half.last.objective).values())
    for stage in half.fits:
        losses = [value for _, name, value in _log(half, stage) if name.startswith("loss")]
        assert len(losses) >= 10
        assert all(math.isfinite(value) for value in losses)


def test_updates_run_on_another_device(trained: Trained, tmp_path: Path) -> None:
    for stage in trained.fits:
        values = other_device.updates(stage, copy.deepcopy(trained.before[stage.name]), tmp_path)
        assert values
        assert all(math.isfinite(value) for value in values.values())


def test_every_term_of_the_loss_is_logged(trained: Trained) -> None:
    for stage in trained.fits:
        # On a copy: reading a batch moves the statistics of batch normalisation.
        terms = copy.deepcopy(stage.objective).terms(_first_batch(stage))
        parts = {f"loss/{name}" for name in terms} if len(terms) > 1 else set()
        rows = list(_log(trained, stage))
        updates = {update for update, _, _ in rows}
        assert updates == set(range(EVERY, UPDATES + 1, EVERY))
        for update in updates:
            row = {name: value for at, name, value in rows if at == update}
            assert {name for name in row if name.startswith("loss")} == {"loss", *parts}
            if parts:
                # Means of float32 values over a window: rounding grows with the largest of them.
                size = max(abs(row[name]) for name in parts)
                assert sum(row[name] for name in parts) == pytest.approx(row["loss"], abs=1e-6 * len(parts) * size)


def test_recipe_of_a_run_runs_again(slug: str, again: Run) -> None:
    written = read(again.folder)
    assert written == small_recipe(slug)  # and `again`, which was read from such a file, has the weights of `trained`
    assert resolve(written) == written


def _first_batch(stage: Fit) -> Batch:
    streams = stage.objective.streams(stage.data, stage.settings.batch_size, SEED)
    if isinstance(streams, dict):
        return {name: stream.batch(0) for name, stream in streams.items()}  # type: ignore[misc]
    return streams.batch(0)


def _log(trained: Trained, stage: Fit) -> Iterator[tuple[int, str, float]]:
    """(update, name, value) of the training rows."""
    with (trained.folder / stage.name / "metrics.csv").open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            if row["split"] == "train":
                yield int(row["update"]), row["name"], float(row["value"])
