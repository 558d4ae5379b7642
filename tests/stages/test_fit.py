"""The fit: exact resume, what is saved, when it is run again, and what it says when it breaks."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Mean
from limbeck.methods.classification.kd import KD
from limbeck.methods.classification.ps_kd import PSKD
from limbeck.methods.classification.supervised import Supervised
from limbeck.models import Classifier
from limbeck.stages import schedule
from limbeck.stages.digest import digest
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, Program, drive
from limbeck.teachers.frozen import Frozen

from .fits import UPDATES, KilledError, dying, fit, rows_of, settings, weights_of
from .toys import MeanTeacher, TwoOptimizers, TwoStreams, small


@pytest.fixture(scope="module")
def data() -> ImageData:
    """160 training digits with augmentation: five updates an epoch."""
    return load("digits", seed=0, train_size=160, view="weak")


def kd(data: ImageData) -> KD:
    return KD(small(data, dropout=0.3), Frozen(small(data, seed=1, width=4), data.classes))


OBJECTIVES: dict[str, Callable[[ImageData], Objective]] = {
    "supervised": lambda data: Supervised(small(data, dropout=0.5, norm="batch")),
    "kd": kd,
    "ps-kd": lambda data: PSKD(small(data, dropout=0.3)),
    "ps-kd-half": lambda data: PSKD(small(data), storage="float16"),
    "ps-kd-model": lambda data: PSKD(small(data, norm="batch"), past="model"),
    "mean-teacher": lambda data: MeanTeacher(small(data, norm="batch", dropout=0.3)),
    "two-optimizers": lambda data: TwoOptimizers(small(data)),
    "two-streams": lambda data: TwoStreams(small(data)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_resumed_equals_unbroken_bit_for_bit(tmp_path: Path, data: ImageData, name: str) -> None:
    unbroken = OBJECTIVES[name](data)
    whole = fit(tmp_path / "whole", unbroken, data, settings())
    # In the middle of the first epoch, at its end, right after that, and in the last update.
    for update in (3, 5 - 2, 1, UPDATES - 5 + 1):
        with pytest.raises(KilledError):
            fit(tmp_path / "broken", dying(OBJECTIVES[name](data), update), data, settings())
    last = OBJECTIVES[name](data)
    broken = fit(tmp_path / "broken", last, data, settings())
    assert weights_of(broken) == weights_of(whole)
    assert (broken / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert (broken / "predictions.safetensors").read_bytes() == (whole / "predictions.safetensors").read_bytes()
    state, expected = last.state_dict(), unbroken.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, broken)]
    timing = ("latency_ms", "teacher/latency_ms")
    assert len({json.dumps({k: v for k, v in r["metrics"].items() if k not in timing}) for r in results}) == 1
    samples = 32 + 16 * (name == "two-streams")
    assert [(r["updates"], r["samples_seen"]) for r in results] == [(UPDATES, UPDATES * samples)] * 2


def test_the_kills_were_where_they_are_said_to_be(tmp_path: Path, data: ImageData) -> None:
    found = []
    for update in (3, 5 - 2, 1, UPDATES - 5 + 1):
        with pytest.raises(KilledError):
            fit(tmp_path, dying(Supervised(small(data)), update), data, settings())
        found.append(torch.load(tmp_path / "fit" / "checkpoint.pt", weights_only=True)["update"])
    assert found == [2, 4, 4, UPDATES - 1]


@pytest.mark.parametrize(
    "change", [{"workers": 2}, {"accumulate": 2, "clip_grad_norm": 0.5}, {"precision": "bf16-mixed"}]
)
def test_resumed_equals_unbroken_under_other_settings(tmp_path: Path, data: ImageData, change: dict[str, Any]) -> None:
    plain = settings(**{key: value for key, value in change.items() if key != "workers"})
    whole = fit(tmp_path / "whole", PSKD(small(data, dropout=0.3)), data, plain)
    with pytest.raises(KilledError):
        fit(tmp_path / "broken", dying(PSKD(small(data, dropout=0.3)), 7), data, settings(**change))
    broken = fit(tmp_path / "broken", PSKD(small(data, dropout=0.3)), data, settings(**change))
    assert weights_of(broken) == weights_of(whole)


def test_killed_before_the_first_checkpoint(tmp_path: Path, data: ImageData) -> None:
    how = settings(checkpoint_seconds=1e9)
    whole = fit(tmp_path / "whole", kd(data), data, how)
    for _ in range(2):
        with pytest.raises(KilledError):
            fit(tmp_path / "broken", dying(kd(data), 6), data, how)
    broken = fit(tmp_path / "broken", kd(data), data, how)
    assert weights_of(broken) == weights_of(whole)
    assert (broken / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def test_a_row_that_was_cut_off_is_written_again(tmp_path: Path, data: ImageData) -> None:
    whole = fit(tmp_path / "whole", kd(data), data, settings())
    with pytest.raises(KilledError):
        fit(tmp_path / "broken", dying(kd(data), 6), data, settings())
    log = tmp_path / "broken" / "fit" / "metrics.csv"
    with log.open("a", encoding="utf-8") as handle:
        handle.write("8,1.6000,train,lo")
    fit(tmp_path / "broken", kd(data), data, settings())
    assert log.read_text() == (whole / "metrics.csv").read_text()


def test_the_draws_inside_an_update_do_not_depend_on_what_ran_before(tmp_path: Path, data: ImageData) -> None:
    first = fit(tmp_path / "a", Supervised(small(data, dropout=0.5)), data, settings())
    torch.manual_seed(1234)
    torch.rand(7)
    assert weights_of(fit(tmp_path / "b", Supervised(small(data, dropout=0.5)), data, settings())) == weights_of(first)


# --- teachers


def test_a_frozen_teacher_is_left_alone_and_out(tmp_path: Path, data: ImageData) -> None:
    objective = kd(data)
    before = digest(objective.teacher)
    with pytest.raises(KilledError):
        fit(tmp_path, dying(objective, 8), data, settings())
    assert digest(objective.teacher) == before
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    assert not any(module.training for module in objective.teacher.modules())
    state = torch.load(tmp_path / "fit" / "checkpoint.pt", weights_only=True)
    assert {key.partition(".")[0] for key in state["objective"]} == {"student"}
    assert len(state["optimizer_main"]["state"]) == len(list(objective.student.parameters()))
    assert state["update"] == 7


def test_the_teacher_is_measured_before_training_and_at_the_end(tmp_path: Path, data: ImageData) -> None:
    objective = kd(data)
    folder = fit(tmp_path, objective, data, settings())
    first = [row for row in rows_of(folder) if row["update"] == "0"]
    assert {row["split"] for row in first} == {"teacher"}
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    accuracy = next(float(row["value"]) for row in first if row["name"] == "accuracy")
    assert accuracy == pytest.approx(metrics["teacher/validation/accuracy"])
    assert metrics["teacher/parameters"] == sum(p.numel() for p in objective.teacher.parameters())


def test_the_student_comes_back_ready_for_use(tmp_path: Path, data: ImageData) -> None:
    def program(objective: Objective) -> Program:
        return (yield Fit("fit", objective, data, settings()))

    models: list[Classifier] = [
        drive(program(kd(data)), Context(folder=tmp_path, method="kd", seed=0)) for _ in ("trained", "found finished")
    ]
    assert not any(model.training for model in models)
    assert all(p.grad is None for p in models[0].parameters())
    batch = data.test.fetch(torch.arange(20))
    assert torch.equal(*(model(batch).logits.detach() for model in models))


# --- finished stages


def test_a_finished_stage_is_not_run_again(tmp_path: Path, data: ImageData) -> None:
    folder = fit(tmp_path, kd(data), data, settings())
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.csv",
        "model",
        "predictions.safetensors",
        "result.json",
        "settings.json",
    ]
    before = (folder / "result.json").stat().st_mtime_ns
    fit(tmp_path, dying(kd(data), 1), data, settings())
    assert (folder / "result.json").stat().st_mtime_ns == before


def test_a_checkpoint_left_by_a_kill_after_the_end_is_removed(tmp_path: Path, data: ImageData) -> None:
    folder = fit(tmp_path, kd(data), data, settings())
    (folder / "checkpoint.pt").write_bytes(b"left over")
    fit(tmp_path, kd(data), data, settings())
    assert not (folder / "checkpoint.pt").exists()


def test_an_equal_stage_of_another_run_is_taken_over(tmp_path: Path, data: ImageData) -> None:
    pool = tmp_path / "pool"
    first = fit(tmp_path / "a", kd(data), data, settings(), pool)
    second = fit(tmp_path / "b", dying(kd(data), 1), data, settings(), pool, method="other")
    assert weights_of(second) == weights_of(first)
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    assert results[1] == {**results[0], "method": "other"}


def test_a_folder_that_was_made_anew_is_not_taken_over(tmp_path: Path, data: ImageData) -> None:
    pool = tmp_path / "pool"
    first = fit(tmp_path / "a", kd(data), data, settings(), pool)
    shutil.rmtree(first)
    fit(tmp_path / "a", kd(data), data, settings(batch_size=16), pool)
    with pytest.raises(KilledError):
        fit(tmp_path / "b", dying(kd(data), 1), data, settings(), pool)


def test_a_finished_stage_of_the_pool_that_is_gone_is_made_again(tmp_path: Path, data: ImageData) -> None:
    first = weights_of(fit(tmp_path / "a", kd(data), data, settings(), tmp_path / "pool"))
    shutil.rmtree(tmp_path / "a")
    assert weights_of(fit(tmp_path / "b", kd(data), data, settings(), tmp_path / "pool")) == first


def test_a_folder_of_other_inputs_is_refused(tmp_path: Path, data: ImageData) -> None:
    fit(tmp_path, kd(data), data, settings())
    with pytest.raises(LimbeckError, match=r"made from other inputs \(changed: settings\); choose another --name"):
        fit(tmp_path, kd(data), data, settings(batch_size=16))
    with pytest.raises(LimbeckError, match=r"changed: weights\)"):
        fit(tmp_path, KD(small(data, seed=7, dropout=0.3), kd(data).teacher), data, settings())


def test_two_stages_of_one_name_are_refused(tmp_path: Path, data: ImageData) -> None:
    def program() -> Program:
        yield Fit("fit", kd(data), data, settings(updates=1))
        return (yield Fit("fit", kd(data), data, settings(updates=1)))

    with pytest.raises(LimbeckError, match="two stages named 'fit'"):
        drive(program(), Context(folder=tmp_path, method="toy", seed=0))


def identity(data: ImageData, objective: Objective, how: FitSettings, seed: int = 0) -> str:
    context = Context(folder=Path("nowhere"), method="toy", seed=seed)
    return json.dumps(dict(Fit("fit", objective, data, how).identity(context)), sort_keys=True)


def test_identity_follows_what_decides_the_weights(data: ImageData) -> None:
    same = identity(data, kd(data), settings())
    assert identity(data, kd(data), settings()) == same
    for free in ({"workers": 2}, {"log_every": 1}, {"checkpoint_seconds": 9.0}, {"evaluations": 0}):
        assert identity(data, kd(data), settings(**free)) == same
    hotter = kd(data)
    hotter.temperature = 2.0
    other_teacher = KD(small(data, dropout=0.3), Frozen(small(data, seed=2, width=4), data.classes))
    fewer = load("digits", seed=0, train_size=150, view="weak")
    unlike = [
        identity(data, hotter, settings()),
        identity(data, other_teacher, settings()),
        identity(data, KD(small(data, dropout=0.4), kd(data).teacher), settings()),
        identity(fewer, kd(data), settings()),
        identity(load("digits", seed=0, train_size=160, view="none"), kd(data), settings()),
        identity(load("digits", seed=1, train_size=160, view="weak"), kd(data), settings()),
        identity(data, kd(data), settings(updates=14)),
        identity(data, kd(data), settings(precision="bf16-mixed")),
        identity(data, kd(data), settings(optimizer={"name": "sgd", "lr": 0.01})),
        identity(data, kd(data), settings(), seed=1),
        identity(data, Supervised(small(data, dropout=0.3)), settings()),
    ]
    assert same not in unlike
    assert len(set(unlike)) == len(unlike)


# --- schedules


def rates_of(reference: Callable[[torch.optim.Optimizer], Any], total: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = reference(optimizer)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (schedule.cosine(), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=40)),
        (schedule.cosine(final=0.1), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=40, eta_min=0.1)),
        (schedule.linear(), lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=40)),
        (schedule.linear(power=0.9), lambda o: torch.optim.lr_scheduler.PolynomialLR(o, total_iters=40, power=0.9)),
        (schedule.multistep(), lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [20, 30])),
        (schedule.multistep([0.1], gamma=0.5), lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [4], gamma=0.5)),
        (schedule.constant(), lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
    ],
)
def test_schedules_are_those_of_torch(ours: schedule.Schedule, reference: Callable[..., Any]) -> None:
    # torch multiplies step by step: forty roundings of float64.
    assert [ours(update, 40) for update in range(40)] == pytest.approx(rates_of(reference, 40), abs=1e-13)


def test_quarter_cosine_is_fixmatchs() -> None:
    total = 2**20
    ours = schedule.quarter_cosine()
    assert [ours(u, total) for u in (0, total // 2, total)] == pytest.approx(
        [math.cos(7 * math.pi * u / (16 * total)) for u in (0, total // 2, total)], rel=1e-15
    )
    assert schedule.quarter_cosine(share=1.0)(40, 40) == pytest.approx(0, abs=1e-15)
    assert schedule.quarter_cosine(share=0.0)(40, 40) == 1.0
    with pytest.raises(LimbeckError, match=r"fit\.schedule\.share is 1\.5"):
        settings(schedule={"name": "quarter_cosine", "share": 1.5})


def test_weight_decay_can_leave_biases_alone() -> None:
    layer = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = [p.detach().clone() for p in layer.parameters()]
    how = settings(optimizer={"name": "sgd", "lr": 1.0, "weight_decay": 0.5}, decay_biases=False)
    optimizer = how.make_optimizer(layer.parameters())
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    after = list(layer.parameters())
    assert torch.equal(after[0], 0.5 * before[0])
    assert all(torch.equal(a, b) for a, b in zip(after[1:], before[1:], strict=True))
    (together,) = settings().make_optimizer(layer.parameters()).param_groups
    assert len(together["params"]) == 4


def test_warm_up_is_a_straight_line_to_the_schedule() -> None:
    warmed = schedule.constant(warmup=0.1)
    assert [warmed(update, 40) for update in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert schedule.cosine(warmup=0.1)(10, 40) == schedule.cosine()(10, 40)


def test_the_rate_that_is_logged_is_the_rate_that_was_used(tmp_path: Path, data: ImageData) -> None:
    how = settings(optimizer={"name": "sgd", "lr": 0.2}, schedule={"name": "cosine", "warmup": 0.2})
    rates = {
        int(r["update"]): float(r["value"]) for r in rows_of(fit(tmp_path, kd(data), data, how)) if r["name"] == "lr"
    }
    expected = schedule.cosine(warmup=0.2)
    assert rates == {update: 0.2 * expected(update - 1, UPDATES) for update in (4, 8, 12, 15)}


# --- faults while training


class Scripted(Objective):
    """Its loss is 1, 2, 3 ... by updates; from some update on a term or a weight is NaN."""

    updates: Tensor

    def __init__(self, student: Classifier, term: int = 0, weight: int = 0) -> None:
        super().__init__()
        self.student = student
        self.term = term
        self.weight = weight
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def terms(self, batch: Batch) -> Terms:
        nothing = 0 * self.student(batch).logits.sum()
        number = int(self.updates) + 1
        terms: Terms = {"fine": nothing + number, "kd": nothing + (math.nan if number == self.term else 0.0)}
        if number % 2:
            terms["odd"] = Mean.of(nothing + torch.zeros(4))
        return terms

    def after_update(self, batch: Batch) -> None:
        self.updates += 1
        if int(self.updates) == self.weight:
            next(self.student.parameters()).data[0] = math.nan


PLAIN = {"optimizer": {"name": "sgd", "lr": 0.0}}


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_nan_in_the_loss_names_update_and_term(tmp_path: Path, data: ImageData, seconds: float) -> None:
    how = settings(**PLAIN, checkpoint_seconds=seconds)
    with pytest.raises(LimbeckError, match=r"loss/kd became NaN or infinite at update 7; the last good state is kept"):
        fit(tmp_path, Scripted(small(data), term=7), data, how)
    checkpoint = tmp_path / "fit" / "checkpoint.pt"
    if seconds:
        assert not checkpoint.exists()
    else:
        assert torch.load(checkpoint, weights_only=True)["update"] == 6
    assert not (tmp_path / "fit" / "result.json").exists()


def test_nan_in_a_term_that_is_not_there_at_every_update(tmp_path: Path, data: ImageData) -> None:
    class Rare(Scripted):
        def terms(self, batch: Batch) -> Terms:
            terms = super().terms(batch)
            if int(self.updates) == 6:
                terms["odd"] = torch.tensor(math.inf)
            return terms

    how = settings(**PLAIN, checkpoint_seconds=1e9, log_every=8)
    with pytest.raises(LimbeckError, match="loss/odd became NaN or infinite at update 7"):
        fit(tmp_path, Rare(small(data)), data, how)


def test_nan_in_a_weight_is_not_saved(tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(
        LimbeckError, match=r"the weight student\.body\.0\.0\.weight became NaN or infinite by update 5"
    ):
        fit(tmp_path / "a", Scripted(small(data), weight=5), data, settings(**PLAIN))
    assert torch.load(tmp_path / "a" / "fit" / "checkpoint.pt", weights_only=True)["update"] == 4
    with pytest.raises(LimbeckError, match=f"the weight .* by update {UPDATES}"):
        fit(tmp_path / "b", Scripted(small(data), weight=UPDATES), data, settings(**PLAIN))
    assert not (tmp_path / "b" / "fit" / "model").exists()


def test_windows_of_the_log_hold_their_updates_and_no_others(tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(KilledError):
        fit(tmp_path, dying(Scripted(small(data)), 7), data, settings(**PLAIN))
    rows = rows_of(fit(tmp_path, Scripted(small(data)), data, settings(**PLAIN)))
    losses = {int(row["update"]): float(row["value"]) for row in rows if row["name"] == "loss/fine"}
    assert losses == {4: 2.5, 8: 6.5, 12: 10.5, 15: 14.0}
    assert {int(row["update"]) for row in rows if row["split"] == "validation"} == {5, 10, 15}
    assert [int(row["update"]) for row in rows] == sorted(int(row["update"]) for row in rows)
    assert {float(row["epoch"]) for row in rows if row["update"] == "15"} == {3.0}


@pytest.mark.parametrize("garbage", [b"", b"not a checkpoint", "half", "other"])
def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path, data: ImageData, garbage: bytes | str) -> None:
    with pytest.raises(KilledError):
        fit(tmp_path, dying(kd(data), 6), data, settings())
    path = tmp_path / "fit" / "checkpoint.pt"
    whole = path.read_bytes()
    if garbage == "other":
        torch.save({"objective": {}}, path)
    else:
        path.write_bytes(whole[: len(whole) // 2] if garbage == "half" else garbage)
    with pytest.raises(
        LimbeckError, match=r"checkpoint\.pt cannot be read, .*; delete it to start this stage again$"
    ) as e:
        fit(tmp_path, kd(data), data, settings())
    assert "\n" not in str(e.value)
    path.unlink()
    fit(tmp_path, kd(data), data, settings())


# --- settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, r"fit\.batch_size is 0; it must be at least 1"),
        ({"accumulate": 0}, r"fit\.accumulate is 0"),
        ({"accumulate": 3}, "32 cannot be split into fit.accumulate 3 equal parts"),
        ({"updates": 0}, "must be positive"),
        ({"updates": None, "epochs": -1}, "must be positive"),
        ({"log_every": 0}, r"fit\.log_every is 0"),
        ({"evaluations": -1}, r"fit\.evaluations is -1"),
        ({"optimizer": {"name": "sdg"}}, r"unknown optimizer 'sdg'. Did you mean 'sgd'\?"),
        ({"optimizer": {"lr": 0.1}}, "unknown optimizer ''"),
        ({"optimizer": {"name": "sgd", "lr": -1.0}}, r"fit\.optimizer: Invalid learning rate: -1\.0"),
        ({"optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True}}, r"fit\.optimizer: Nesterov"),
        ({"optimizer": {"name": "adam", "momentum": 0.1}}, r"fit\.optimizer: .*momentum"),
        ({"schedule": {"name": "cosin"}}, r"unknown schedule 'cosin'. Did you mean 'cosine'\?"),
        ({"schedule": {"name": "cosine", "warmup": 5}}, r"fit\.schedule\.warmup is 5; it is a share"),
        ({"schedule": {"name": "multistep", "milestones": [150]}}, r"fit\.schedule\.milestones is 150"),
        ({"schedule": {"name": "linear", "gamma": 1}}, r"fit\.schedule: .*gamma"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        settings(**wrong)


def test_length_by_epochs_or_by_updates() -> None:
    assert settings(updates=None, epochs=2.5).total_updates(160) == 12
    assert settings(updates=None, epochs=0.01).total_updates(160) == 1
    assert settings(updates=7, epochs=100).total_updates(160) == 7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"accelerator": "abacus"}, "fit: .*abacus"),
        ({"precision": "12-bit"}, "fit: .*12-bit"),
        ({"strategy": "fspd"}, "fit: .*fspd"),
    ],
)
def test_what_fabric_refuses_is_one_line(tmp_path: Path, data: ImageData, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message) as caught:
        fit(tmp_path, kd(data), data, settings(**wrong))
    assert "\n" not in str(caught.value)


def test_a_dry_run_trains_nothing_and_copies_no_data(data: ImageData) -> None:
    objective = kd(data)
    before = digest(objective)
    found = Fit("fit", objective, data, dataclasses.replace(settings(), devices=2, strategy="ddp")).describe()
    assert digest(objective) == before
    assert found["updates"] == UPDATES
    assert found["seconds"] > 0
