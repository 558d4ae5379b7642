"""Two processes end where one does: rank-sliced batches, sums and counts that travel, tables that all hold.

The networks keep no batch statistics, which each process would take from its own half.
"""

from pathlib import Path

import pytest
import torch
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.strategies import DDPStrategy
from safetensors.torch import load_file
from torch import Tensor

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Mean
from limbeck.methods.classification.kd import KD
from limbeck.methods.classification.ps_kd import PSKD
from limbeck.models import Classifier
from limbeck.models import load as load_model
from limbeck.stages.digest import digest
from limbeck.stages.objective import Batch, Objective, Plan, Terms
from limbeck.stages.processes import make_fabric
from limbeck.teachers.frozen import Frozen

from .fits import dying, fit, rows_of, settings, weights_of
from .toys import MeanTeacher, Toy, small

TWO = {"devices": 2, "strategy": "ddp_fork"}

pytestmark = pytest.mark.filterwarnings(
    # Fabric's own: forking beside the threads of a test run.
    "ignore:.*fork.*:DeprecationWarning"
)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load("digits", seed=0, train_size=160, view="weak")


class Writes(PSKD):
    """PS-KD that leaves its table behind, one file a process."""

    folder: Path

    def after_update(self, batch: Batch) -> None:
        super().after_update(batch)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else "alone"
        torch.save(self.memory.state_dict(), self.folder / f"{rank}.pt")


def objective(name: str, data: ImageData) -> Objective:
    match name:
        case "kd":
            return KD(small(data), Frozen(small(data, seed=1, width=4), data.classes))
        case "ps-kd":
            return PSKD(small(data))
        case "mean-teacher":
            return MeanTeacher(small(data))
        case _:
            return Toy(small(data), tuple(name.split("+")))


def assert_near(first: Path, second: Path) -> None:
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        # Half sums are added in another order: 1e-7 an update of learning rate 0.05, fifteen of them.
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["kd", "ps-kd", "mean-teacher", "all+few+bounded", "few+scalar"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_equal_one(tmp_path: Path, data: ImageData, name: str, accumulate: int) -> None:
    one = fit(tmp_path / "one", objective(name, data), data, settings())
    two = fit(tmp_path / "two", objective(name, data), data, settings(**TWO, accumulate=accumulate))
    start = digest(objective(name, data).student)
    assert digest(load_model(one / "model")) != start, "it must have learned"
    assert_near(one, two)
    logs = [{(r["update"], r["split"], r["name"]): float(r["value"]) for r in rows_of(f)} for f in (one, two)]
    assert logs[0].keys() == logs[1].keys()
    for key, value in logs[0].items():
        if key[1] == "train":  # the loss of both processes, not of the first one's half
            assert logs[1][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_the_table_of_past_predictions_is_the_same_everywhere(tmp_path: Path, data: ImageData) -> None:
    for how in ({}, TWO):
        writes = Writes(small(data))
        writes.__dict__["folder"] = tmp_path
        fit(tmp_path / str(len(how)), writes, data, settings(**how))
    alone, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("alone", 0, 1))
    assert torch.equal(first["table"], second["table"])
    assert torch.equal(first["seen"], second["seen"])
    assert torch.equal(first["seen"], alone["seen"])
    assert int(first["seen"].sum()) == len(data.train)
    torch.testing.assert_close(first["table"], alone["table"], rtol=0, atol=1e-5)  # as for the weights


def test_two_processes_resume_bit_for_bit(tmp_path: Path, data: ImageData) -> None:
    how = settings(**TWO, updates=24)
    whole = fit(tmp_path / "whole", objective("ps-kd", data), data, how)
    with pytest.raises(Exception, match="KilledError"):
        fit(tmp_path / "broken", dying(objective("ps-kd", data), 14), data, how)
    # Processes agree on a checkpoint at every tenth update.
    assert torch.load(tmp_path / "broken" / "fit" / "checkpoint.pt", weights_only=True)["update"] == 10
    broken = fit(tmp_path / "broken", objective("ps-kd", data), data, how)
    assert weights_of(broken) == weights_of(whole)
    assert (broken / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


class MaskedOnOneSide(Objective):
    """All that counts lies in the second process's half, and its NaN too."""

    updates: Tensor

    def __init__(self, student: Classifier, broken: int = 0) -> None:
        super().__init__()
        self.student = student
        self.broken = broken
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def begin(self, plan: Plan) -> None:
        self.rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else None

    def terms(self, batch: Batch) -> Terms:
        logits = self.student(batch).logits
        # Samples 1, 3, 5 ... of the global batch are those of the second process.
        place = torch.arange(len(logits)) * 2 + self.rank if self.rank is not None else torch.arange(len(logits))
        losses = logits.square().mean(1)
        if self.broken == int(self.updates) + 1 and self.rank != 0:
            losses = losses + torch.nan
        return {"second": Mean.of(losses, place % 2 == 1)}

    def after_update(self, batch: Batch) -> None:
        self.updates += 1


def test_a_term_of_one_process_only_is_exact(tmp_path: Path, data: ImageData) -> None:
    one = fit(tmp_path / "one", MaskedOnOneSide(small(data)), data, settings())
    assert_near(one, fit(tmp_path / "two", MaskedOnOneSide(small(data)), data, settings(**TWO)))


def test_nan_in_one_process_stops_all_with_our_error(tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(LimbeckError, match=r"^loss became NaN or infinite at update 7; the last good state is kept"):
        fit(tmp_path, MaskedOnOneSide(small(data), broken=7), data, settings(**TWO))


@pytest.mark.parametrize(("batch_size", "accumulate"), [(33, 1), (6, 2), (34, 2)])
def test_a_batch_that_cannot_be_shared_is_refused(
    tmp_path: Path, data: ImageData, batch_size: int, accumulate: int
) -> None:
    if batch_size == 6:
        accumulate = 6
    how = settings(**TWO, batch_size=batch_size, accumulate=accumulate)
    with pytest.raises(LimbeckError, match=rf"fit\.batch_size {batch_size} cannot be divided among 2 processes"):
        fit(tmp_path, objective("kd", data), data, how)


def test_precision_and_strategy_reach_fabric_unchanged(data: ImageData) -> None:
    fabric = make_fabric(settings(precision="bf16-mixed", devices=2, strategy="ddp"))
    assert isinstance(fabric.strategy.precision, MixedPrecision)
    assert fabric.strategy.precision.precision == "bf16-mixed"
    assert (type(fabric.strategy), fabric.world_size) == (DDPStrategy, 2)
    strategy = DDPStrategy(static_graph=True)
    how = settings(devices=2, strategy=strategy)
    assert make_fabric(how).strategy is strategy
    assert how.plain()["strategy"] == "DDPStrategy"
    assert settings().plain()["strategy"] == "auto"


def test_a_run_of_two_processes_through_a_strategy_object(tmp_path: Path, data: ImageData) -> None:
    one = fit(tmp_path / "one", objective("kd", data), data, settings())
    how = settings(devices=2, strategy=DDPStrategy(start_method="fork"))
    assert_near(one, fit(tmp_path / "two", objective("kd", data), data, how))
    before = (tmp_path / "two" / "fit" / "result.json").stat().st_mtime_ns
    again = settings(devices=2, strategy=DDPStrategy(start_method="fork"))
    fit(tmp_path / "two", dying(objective("kd", data), 1), data, again)
    assert (tmp_path / "two" / "fit" / "result.json").stat().st_mtime_ns == before


def test_a_stage_with_other_processes_than_are_running_is_refused(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(
            LimbeckError, match="fit asks for 2 processes, but an earlier stage of this command started 1"
        ):
            fit(tmp_path, objective("kd", data), data, settings(devices=2, strategy="ddp"))
    finally:
        torch.distributed.destroy_process_group()
