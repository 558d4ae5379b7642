"""Sharded weights (FSDP) end where whole ones do, resume, and refuse what shards cannot do.

Two processes on the CPU; Fabric keeps its own class from the CPU, so that a subclass stands for it here.
"""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.strategies import FSDPStrategy, ModelParallelStrategy
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.multiprocessing import ProcessRaisedException, start_processes

from limbeck.data.data import Data
from limbeck.data.load import load as load_data
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.language.lm_kd import LMKD
from limbeck.models import build
from limbeck.models import load as load_model
from limbeck.stages.digest import digest
from limbeck.stages.evaluation import predict_logits
from limbeck.stages.objective import Batch, Objective
from limbeck.stages.processes import make_fabric
from limbeck.teachers.frozen import Frozen

from .fits import dying, fit, rows_of, settings, weights_of
from .test_two_processes import Writes, assert_near, data, objective
from .toys import Toy, TwoOptimizers, small

__all__ = ["data"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .NO_SHARD. sharding strategy is deprecated:FutureWarning"),
    # torch's: in one flat parameter the student may lie with the first process, and frozen weights with the second.
    pytest.mark.filterwarnings("ignore:Called FSDP.clip_grad_norm_.. on rank 1 with no gradients:UserWarning"),
]


class CpuFSDP(FSDPStrategy):
    """Fabric's strategy, with a device that is no GPU."""

    def setup_module(self, module: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            module,
            sharding_strategy=self.sharding_strategy,
            mixed_precision=self.mixed_precision_config,
            device_id=torch.device("cpu"),
            **self._fsdp_kwargs,
        )


def _one(rank: int, port: int, work: Callable[[], object]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "NODE_RANK": 0}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    work()


def on_two(work: Callable[[], object]) -> None:
    """Run ``work`` in two processes that Fabric finds running, as under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_one, (port, work), nprocs=2, start_method="fork")


def sharded(
    folder: Path, objective: Objective, data: Data, strategy: dict[str, Any] | None = None, **options: Any
) -> Path:
    """A fit on two processes; each leaves its error, or what it was handed as the trained student."""

    def work() -> None:
        how = settings(devices=2, strategy=CpuFSDP(**(strategy or {})), **options)
        try:
            fit(folder, objective, data, how)
            said = digest(objective.student)
        except LimbeckError as error:
            said = str(error)
        (folder / os.environ["RANK"]).write_text(said)

    on_two(work)
    return folder / "fit"


def said(folder: Path) -> str:
    """What both processes left."""
    first, second = ((folder / rank).read_text() for rank in "01")
    assert first == second
    return first


def made(name: str, data: ImageData) -> Objective:
    return TwoOptimizers(small(data)) if name == "two optimizers" else objective(name, data)


LAYERS = {"auto_wrap_policy": {Frozen, nn.Conv2d}}


@pytest.mark.parametrize(
    ("name", "strategy", "options"),
    [
        ("kd", {}, {}),
        ("kd", {}, {"clip_grad_norm": 0.5}),
        ("kd", LAYERS, {"clip_grad_norm": 0.5, "optimizer": {"name": "adamw", "lr": 0.01}}),
        ("ps-kd", {}, {}),
        ("ps-kd", {"sharding_strategy": "SHARD_GRAD_OP"}, {"optimizer": {"name": "sgd", "lr": 0.05}}),
        ("ps-kd", {"sharding_strategy": "NO_SHARD"}, {}),
        ("few+bounded+none", LAYERS, {}),
        ("kd", {}, {"accumulate": 2}),
    ],
)
def test_shards_equal_one_process(
    tmp_path: Path, data: ImageData, name: str, strategy: dict[str, Any], options: dict[str, Any]
) -> None:
    one = fit(tmp_path / "one", made(name, data), data, settings(**options))
    two = sharded(tmp_path / "two", made(name, data), data, strategy, **options)
    assert_near(one, two)
    student = load_model(two / "model")
    assert said(tmp_path / "two") == digest(student) != digest(made(name, data).student)
    saved = load_file(two / "predictions.safetensors")
    assert saved.keys() == load_file(one / "predictions.safetensors").keys()
    torch.testing.assert_close(saved["logits"], predict_logits(student, data.test).logits)
    logs = [{(r["update"], r["split"], r["name"]): float(r["value"]) for r in rows_of(f)} for f in (one, two)]
    assert len(rows_of(two)) == len(logs[1]), "each row once"
    assert logs[0] == pytest.approx(logs[1], rel=1e-3, abs=1e-5)  # validation and teacher too


@pytest.mark.parametrize("strategy", [{}, {"auto_wrap_policy": {nn.LayerNorm}}])
def test_shards_of_language_models_equal_one_process(tmp_path: Path, strategy: dict[str, Any]) -> None:
    """Their losses read the output layer's weight without going through the layer."""
    pytest.importorskip("transformers")
    texts = load_data("descriptions", seed=0, length=16)

    def lm_kd() -> Objective:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            teacher, student = (build("gpt", texts.task, layers=1, width=16, heads=2) for _ in range(2))
        return LMKD(student, Frozen(teacher), ratio=0.5)

    one = fit(tmp_path / "one", lm_kd(), texts, settings())
    two = sharded(tmp_path / "two", lm_kd(), texts, strategy)
    assert_near(one, two)
    assert said(tmp_path / "two") == digest(load_model(two / "model")) != digest(lm_kd().student)


@pytest.mark.parametrize(
    ("name", "strategy", "optimizer"),
    [
        ("kd", LAYERS, {"name": "adamw", "lr": 0.01}),
        ("kd", {}, {"name": "adamw", "lr": 0.01}),
        ("ps-kd", {}, {"name": "sgd", "lr": 0.05, "momentum": 0.9}),
    ],
)
def test_a_killed_run_of_shards_resumes(
    tmp_path: Path, data: ImageData, name: str, strategy: dict[str, Any], optimizer: dict[str, Any]
) -> None:
    options = {"updates": 24, "optimizer": optimizer}
    whole = sharded(tmp_path / "whole", objective(name, data), data, strategy, **options)
    with pytest.raises(ProcessRaisedException, match="KilledError"):
        sharded(tmp_path / "broken", dying(objective(name, data), 14), data, strategy, **options)
    state = torch.load(tmp_path / "broken" / "fit" / "checkpoint.pt", weights_only=True)
    assert state["update"] == 10
    assert {key: value.shape for key, value in state["objective"].items() if "memory" not in key} == {
        key: value.shape for key, value in objective(name, data).state_dict().items()
    }
    with pytest.raises(ProcessRaisedException, match="KilledError"):
        sharded(tmp_path / "broken", dying(objective(name, data), 12), data, strategy, **options)  # after a save at 20
    broken = sharded(tmp_path / "broken", objective(name, data), data, strategy, **options)
    assert weights_of(broken) == weights_of(whole)
    assert (broken / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def test_the_table_of_past_predictions_is_whole_everywhere(tmp_path: Path, data: ImageData) -> None:
    for how in ("one", "two"):
        writes = Writes(small(data))
        writes.__dict__["folder"] = tmp_path
        fit(tmp_path / how, writes, data, settings()) if how == "one" else sharded(tmp_path / how, writes, data)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("alone", 0, 1))
    assert torch.equal(first["table"], second["table"])
    assert torch.equal(first["seen"], alone["seen"])
    torch.testing.assert_close(first["table"], alone["table"], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla is imported:UserWarning")
def test_half_precision_leaves_what_is_measured_equal_to_what_is_saved(tmp_path: Path, data: ImageData) -> None:
    two = sharded(tmp_path, objective("ps-kd", data), data, precision="bf16-mixed")
    assert said(tmp_path) == digest(load_model(two / "model"))


class BreaksOneShard(Toy):
    """A NaN in the second process's part of the weights, and in no loss."""

    updates = 0

    def after_update(self, batch: Batch) -> None:
        self.updates += 1
        if self.updates == 10 and torch.distributed.get_rank() == 1:
            with torch.no_grad():
                next(p for p in self.student.parameters() if p.numel()).fill_(torch.nan)


def test_a_weight_that_is_nan_in_one_shard_stops_all(tmp_path: Path, data: ImageData) -> None:
    sharded(tmp_path, BreaksOneShard(small(data)), data, evaluations=0, log_every=100)
    assert re.match(r"the weight student\.body\.\S+ became NaN or infinite by update 10; the last", said(tmp_path))


class Stateful(Toy):
    def get_extra_state(self) -> int:
        return 0

    def set_extra_state(self, state: int) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mean-teacher", {}, r"MeanTeacher averages the student's weights \(EMA\) .*'CpuFSDP' .*; use ddp"),
        ("few+scalar", {"accumulate": 2}, r"fit\.accumulate 2 does not go with FSDP here: few of Toy are means"),
        ("two optimizers", {}, r"TwoOptimizers has several optimizers, .*; use ddp"),
        ("stateful", {}, r"Stateful keeps extra state"),
    ],
)
def test_what_shards_cannot_do_is_refused_by_all(
    tmp_path: Path, data: ImageData, name: str, options: dict[str, Any], message: str
) -> None:
    sharded(tmp_path, Stateful(small(data)) if name == "stateful" else made(name, data), data, **options)
    assert re.match(message, said(tmp_path))


def test_fsdp_reaches_fabric_unchanged() -> None:
    strategy = CpuFSDP(sharding_strategy="SHARD_GRAD_OP")
    assert make_fabric(settings(devices=2, strategy=strategy)).strategy is strategy
    with pytest.raises(LimbeckError, match=r"^fit: You selected the FSDP strategy but FSDP is only available on GPU"):
        make_fabric(settings(devices=2, strategy="fsdp"))


@pytest.mark.parametrize("strategy", [ModelParallelStrategy(lambda module, mesh: module), "deepspeed"])
def test_other_ways_to_cut_weights_up_are_refused(strategy: object) -> None:
    with pytest.raises(LimbeckError, match=r"^fit"):
        make_fabric(settings(devices=2, strategy=strategy))
