"""What an objective tells beside its loss, which weights a fit keeps, and the seeds of a program's own draws."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Mean
from limbeck.methods.method import Nested
from limbeck.models.classifier import Classifier
from limbeck.models.folder import load as load_model
from limbeck.stages.evaluation import evaluation
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Terms
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, Program, drive
from limbeck.teachers.ema import EMA
from tests.stages.fits import KilledError, dying, fit, settings, weights_of
from tests.stages.toys import Toy, small


@pytest.fixture(scope="module")
def data() -> ImageData:
    found = load("digits", 0, train_size=160)
    assert isinstance(found, ImageData)
    return found


def rows(folder: Path, name: str) -> list[tuple[int, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(r["update"]), float(r["value"])) for r in csv.DictReader(file) if r["name"] == name]


class Observing(Toy):
    """Observes the share of small labels, its mean label, and something that hardly ever exists."""

    def terms(self, batch: Batch) -> Terms:
        label = batch["label"].float()
        few = label < 3
        self.observe(few=Mean.of(few.float()), mean_of_few=Mean.of(label, few), never=Mean.of(label, label > 99))
        self.observe(rate=torch.tensor(2.0))
        return super().terms(batch)

    def summary(self) -> dict[str, float]:
        return {"told_at_the_end": 7.0}


def test_observed_values_are_logged_exactly(data: ImageData, tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", Observing(small(data)), data, settings(log_every=1))
    parts = fit(tmp_path / "parts", Observing(small(data)), data, settings(log_every=1, accumulate=4))
    stage = Fit("fit", Observing(small(data)), data, settings())
    seed = json.loads((plain / "settings.json").read_text())["seed"]
    stream = stage.objective.streams(data, 32, seed)
    for update, value in rows(plain, "mean_of_few"):
        label = stream.batch(update - 1)["label"]  # type: ignore[union-attr]
        # Sums of whole numbers; one division in float32.
        assert value == pytest.approx(label[label < 3].float().mean().item(), rel=1e-6)
    for name in ("few", "mean_of_few"):
        assert len(rows(plain, name)) == 15
        assert [value for _, value in rows(parts, name)] == pytest.approx([v for _, v in rows(plain, name)], rel=1e-6)
    assert rows(plain, "never") == []
    assert {value for _, value in rows(plain, "rate")} == {2.0}
    assert json.loads((plain / "result.json").read_text())["metrics"]["told_at_the_end"] == 7.0


class Watching(Toy):
    """Observes the mean label by a function, and counts how often that is called."""

    calls = 0

    def terms(self, batch: Batch) -> Terms:
        self.observe(label=lambda: self.look(batch["label"].float()))
        return super().terms(batch)

    def look(self, label: Tensor) -> Mean:
        self.calls += 1
        return Mean.of(label)


def test_functions_are_called_ten_times_a_row(data: ImageData, tmp_path: Path) -> None:
    made = [Watching(small(data)) for _ in range(3)]
    whole = fit(tmp_path / "whole", made[0], data, settings(log_every=20))  # fifteen updates, every other one
    parts = fit(tmp_path / "parts", made[1], data, settings(log_every=20, accumulate=4))
    every = fit(tmp_path / "every", made[2], data, settings(log_every=1))
    assert [objective.calls for objective in made] == [8, 32, 15]
    labels = [value for _, value in rows(every, "label")]
    assert len(labels) == 15
    for folder in (whole, parts):
        assert rows(folder, "label") == [(15, pytest.approx(sum(labels[::2]) / 8, rel=1e-6))]


def test_functions_are_called_in_an_own_loop(data: ImageData) -> None:
    objective = Watching(small(data))
    for number in range(3):
        objective.terms(objective.streams(data, 32, 0).batch(number))  # type: ignore[union-attr]
    assert (objective.calls, len(objective.observed["label"])) == (3, 3)


def test_observing_changes_no_weight(data: ImageData, tmp_path: Path) -> None:
    seen = fit(tmp_path / "seen", Observing(small(data)), data, settings())
    blind = fit(tmp_path / "blind", Toy(small(data)), data, settings())
    assert weights_of(seen) == weights_of(blind)


class Diverging(Toy):
    """Learns at first, then is pushed away from what it learnt."""

    updates: Tensor

    def __init__(self, student: Classifier) -> None:
        super().__init__(student)
        self.register_buffer("updates", torch.zeros(()))

    def terms(self, batch: Batch) -> Terms:
        sign = 1.0 if self.updates < 8 else -1.0
        return {"all": sign * super().terms(batch)["all"].value}  # type: ignore[union-attr]

    def after_update(self, batch: Batch) -> None:
        self.updates += 1


def nll(folder: Path, data: ImageData) -> float:
    return evaluation("classification").validate(load_model(folder / "model"), data, torch.device("cpu"))["nll"]


def test_best_keeps_the_best_evaluation(data: ImageData, tmp_path: Path) -> None:
    how = settings(evaluations=5, select="best")
    folder = fit(tmp_path / "best", Diverging(small(data)), data, how)
    measured = dict(rows(folder, "nll"))
    assert min(measured, key=measured.__getitem__) != max(measured)
    assert nll(folder, data) == pytest.approx(min(measured.values()), rel=1e-6)
    last = fit(tmp_path / "last", Diverging(small(data)), data, settings(evaluations=5))
    assert nll(last, data) > nll(folder, data)
    assert not list(folder.glob("best*"))


@pytest.mark.parametrize("update", [7, 12])
def test_best_survives_a_kill(data: ImageData, tmp_path: Path, update: int) -> None:
    how = settings(evaluations=5, select="best")
    whole = fit(tmp_path / "whole", Diverging(small(data)), data, how)
    with pytest.raises(KilledError):
        fit(tmp_path / "killed", dying(Diverging(small(data)), update), data, how)
    assert weights_of(fit(tmp_path / "killed", Diverging(small(data)), data, how)) == weights_of(whole)


def test_how_often_is_measured_matters_only_where_it_chooses(data: ImageData, tmp_path: Path) -> None:
    context = Context(tmp_path, "toy", 0)

    def identity(**options: Any) -> Any:
        return Fit("fit", Toy(small(data)), data, settings(**options)).identity(context)

    assert identity(evaluations=3) == identity(evaluations=5)
    assert identity(evaluations=3, select="best") != identity(evaluations=5, select="best")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "first"}, "fit.select is 'first'"),
        ({"select": "best", "evaluations": 0}, "chooses among evaluations"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        FitSettings(**options)


def test_best_needs_the_metric(data: ImageData, tmp_path: Path) -> None:
    class Other(Toy):
        progress = ("miou", "higher")

    with pytest.raises(LimbeckError, match="needs the validation metric miou; there are: accuracy"):
        fit(tmp_path, Other(small(data)), data, settings(select="best"))


class _Named:
    """A stage that gives its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        return {
            "identity": lambda context: {"name": self.name},
            "run": lambda folder, context: (folder.mkdir(exist_ok=True), (folder / "result.json").write_text("{}")),
            "load": lambda folder: self.name,
        }[name]


class _Twice:
    def program(self) -> Program:
        first = yield _Named("one")
        second = yield _Named("two")
        return f"{first}, {second}"


def test_the_stages_of_a_nested_method_have_its_name(tmp_path: Path) -> None:
    context = Context(tmp_path, "toy", 0)
    nested = Nested("outer", Nested("teacher", _Twice()))
    assert drive(nested.program(), context) == "outer-teacher-one, outer-teacher-two"
    assert context.stages == ["outer-teacher-one", "outer-teacher-two"]


def test_what_a_program_draws_depends_on_the_seed_only(tmp_path: Path) -> None:
    def draws(seed: int, folder: str) -> list[float]:
        found: list[float] = []

        def program() -> Program:
            found.append(torch.rand(()).item())
            yield _Named("one")
            found.append(torch.rand(()).item())

        before = torch.get_rng_state()
        drive(program(), Context(tmp_path / folder, "toy", seed))
        assert torch.equal(torch.get_rng_state(), before)
        return found

    one = draws(0, "a")
    assert one == draws(0, "b")
    assert one[0] != one[1]
    assert not set(one) & set(draws(1, "c"))


def test_what_lies_deep_in_an_objective_is_part_of_its_identity(data: ImageData, tmp_path: Path) -> None:
    context = Context(tmp_path, "toy", 0)

    def identity(decay: float) -> Any:
        objective = Toy(small(data))
        objective.ema = EMA(objective.student, decay=decay)
        return Fit("fit", objective, data, settings()).identity(context)

    assert identity(0.9) == identity(0.9)
    assert identity(0.9) != identity(0.99)


class Partial(Toy):
    """Keeps its hyperparameter where no attribute shows it."""

    def __init__(self, student: Classifier, strength: float = 1.0, **others: float) -> None:
        super().__init__(student)
        self.scale = lambda value: strength * value


def test_what_a_constructor_was_given_is_part_of_the_identity(data: ImageData, tmp_path: Path) -> None:
    context = Context(tmp_path, "toy", 0)

    def identity(*arguments: float, **named: float) -> Any:
        return Fit("fit", Partial(small(data), *arguments, **named), data, settings()).identity(context)

    assert identity(2.0) == identity(strength=2.0)
    assert identity(2.0) != identity(3.0)
    assert identity(other=2.0) != identity(other=3.0)


def test_a_copy_remembers_what_it_was_given(data: ImageData) -> None:
    assert copy.deepcopy(Toy(small(data), ("all",))).given == {"use": ("all",)}
