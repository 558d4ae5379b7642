import csv
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from limbeck.data.clients import ClientData
from limbeck.data.load import load
from limbeck.errors import LimbeckError
from limbeck.models import build
from limbeck.models.model import Model
from limbeck.stages.aggregation import Update, average, difference
from limbeck.stages.digest import digest
from limbeck.stages.federate import Federate
from limbeck.stages.progress import Reporter
from limbeck.stages.stage import Context, drive
from tests.contract.training import KillAt, Killed


class Work:
    """One step towards the mean of random numbers, so that a wrong seed shows."""

    def __init__(self, failing: tuple[tuple[int, int], ...] = (), *, diverge: bool = False) -> None:
        self.failing, self.diverge = failing, diverge

    def update(self, model: Model, data: ClientData, client: int, number: int, seed: int) -> Update:
        if (number, client) in self.failing:
            raise RuntimeError("out of memory")
        start = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn(parameter.shape)
        change = difference(model, start)
        if self.diverge:
            change["body.6.bias"][0] = float("nan")
        return Update(change, float(1 + client), {"seen": (float(client), 2.0)})


@pytest.fixture(scope="module")
def data() -> ClientData:
    found = load("clients", 0, clients=5, alpha=1.0, labeled=0.3)
    assert isinstance(found, ClientData)
    return found


def federate(data: ClientData, work: Any, rounds: int = 4, engine: Literal["local", "flower"] = "local") -> Federate:
    torch.manual_seed(0)
    model = build("cnn", data.task, width=2, norm="batch")
    return Federate("federate", work, model, data, rounds=rounds, clients_per_round=3, engine=engine, evaluations=2)


def run(stage: Federate, folder: Path, reporter: Reporter | None = None) -> Model:
    def program() -> Any:
        return (yield stage)

    found: Model = drive(program(), Context(folder, "fedavg", 0, reporter=reporter or Reporter(quiet=True)))
    return found


def test_average_is_weighted_and_in_order() -> None:
    weights = {"w": torch.tensor([1.0]), "count": torch.tensor(3)}
    updates = [Update({"w": torch.tensor([4.0])}, 1.0), Update({"w": torch.tensor([8.0])}, 3.0)]
    found = average(weights, updates)
    assert found["w"].tolist() == [1 + 0.25 * 4 + 0.75 * 8]
    assert found["count"].item() == 3
    assert weights["w"].tolist() == [1.0]
    assert average(weights, [Update({"w": torch.tensor([4.0])}, 0.0)])["w"].tolist() == [1.0]


def test_one_client_gives_its_own_change() -> None:
    assert average({"w": torch.zeros(2)}, [Update({"w": torch.ones(2)}, 7.0)])["w"].tolist() == [1.0, 1.0]


def test_killed_in_any_round_ends_with_the_same_weights(data: ClientData, tmp_path: Path) -> None:
    whole = digest(run(federate(data, Work()), tmp_path / "whole"))
    for number in (1, 3):
        folder = tmp_path / f"killed-{number}"
        with pytest.raises(Killed):
            run(federate(data, Work()), folder, KillAt(number))
        assert not (folder / "federate" / "result.json").exists()
        assert digest(run(federate(data, Work()), folder)) == whole
        logs = [(f / "federate" / "metrics.csv").read_text() for f in (folder, tmp_path / "whole")]
        assert logs[0] == logs[1]


def test_a_client_that_fails_is_left_out_and_named(data: ClientData, tmp_path: Path) -> None:
    class Said(Reporter):
        def __init__(self) -> None:
            super().__init__(quiet=True)
            self.lines: list[str] = []

        def say(self, text: str) -> None:
            self.lines.append(text)

    every = tuple((number, 2) for number in range(4))
    said = Said()
    stage = federate(data, Work(failing=every))
    run(stage, tmp_path, said)
    with (tmp_path / "federate" / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    drawn = int(rows[2]["rounds"])
    assert drawn > 0
    assert [int(row["failures"]) for row in rows] == [0, 0, drawn, 0, 0]
    assert "out of memory" in rows[2]["error"]
    assert sum("client 2 failed in round" in line and "out of memory" in line for line in said.lines) == drawn
    assert any(f"{drawn} updates of clients failed" in line for line in said.lines)


def test_where_all_fail_there_is_nothing_to_average(data: ClientData, tmp_path: Path) -> None:
    work = Work(failing=tuple((0, client) for client in range(5)))
    with pytest.raises(
        LimbeckError, match="every client of round 1 failed, the last with: RuntimeError: out of memory"
    ):
        run(federate(data, work), tmp_path)


def test_a_change_that_is_no_number_counts_as_a_failure(data: ClientData, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=r"the change of body\.6\.bias is NaN"):
        run(federate(data, Work(diverge=True)), tmp_path)


def test_the_work_decides_the_identity(data: ClientData, tmp_path: Path) -> None:
    context = Context(tmp_path, "fedavg", 0)
    one, same, other = (federate(data, Work(f)).identity(context) for f in ((), (), ((1, 1),)))
    assert one == same
    assert one != other
    # How clients are run does not change what they learn.
    assert federate(data, Work(), engine="flower").identity(context) == one


@pytest.mark.parametrize(
    ("rounds", "clients", "message"),
    [(0, 2, "rounds is 0"), (1, 0, "clients_per_round is 0"), (1, 6, "between 1 and the 5")],
)
def test_refuses(data: ClientData, rounds: int, clients: int, message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        Federate("federate", Work(), build("cnn", data.task, width=2), data, rounds=rounds, clients_per_round=clients)


# Flower's own dependencies are deprecated in places.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_flower_gives_the_same_weights_and_survives_a_failing_client(data: ClientData, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    work = Work(failing=((1, 0), (1, 1), (1, 2)))
    alone = run(federate(data, work), tmp_path / "local")
    flower = run(federate(data, work, engine="flower"), tmp_path / "flower")
    assert digest(flower) == digest(alone)
    rows = [(tmp_path / engine / "federate" / "clients.csv").read_text() for engine in ("local", "flower")]
    assert rows[0] == rows[1]
    assert "out of memory" in rows[0]
