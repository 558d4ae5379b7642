import copy

import pytest
import torch
from torch import nn

from limbeck.models.batch_norm import batch_statistics
from limbeck.teachers import EMA
from limbeck.teachers.future import Snapshot, look_deep, look_wide


@pytest.fixture
def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def step(student: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    student(images).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_a_snapshot_comes_back_bit_for_bit(student: nn.Module, name: str, warm: bool, whole: bool) -> None:
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(torch.optim, name)(student.parameters(), lr=0.1, **options)
    if warm:
        step(student, optimizer, 0)
    parameters = {name for name, _ in student.named_parameters()}
    before, state = copy.deepcopy(student.state_dict()), copy.deepcopy(optimizer.state_dict())
    start = Snapshot(student, buffers=whole, optimizers=[optimizer] if whole else [])
    ends = []
    for _ in range(2):  # it may be used again
        step(student, optimizer, 1)
        step(student, optimizer, 2)
        ends.append(student[0].weight.detach().clone())  # type: ignore[index, union-attr]
        start.restore()
        same = {key for key, value in student.state_dict().items() if torch.equal(value, before[key])}
        assert parameters <= same
        assert (same == set(before)) is whole
        if whole:
            assert optimizer.state_dict()["state"].keys() == state["state"].keys()
            for key, values in state["state"].items():
                for what, value in values.items():
                    assert torch.equal(
                        torch.as_tensor(optimizer.state_dict()["state"][key][what]), torch.as_tensor(value)
                    )
    if whole:
        assert torch.equal(ends[0], ends[1]), "with everything put back the same steps lead to the same place"


def test_deep_and_wide_against_copies(student: nn.Module) -> None:
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    origin = copy.deepcopy(student)
    deep, wide = (EMA(student, 0.5, warmup=False) for _ in range(2))
    start = Snapshot(student)
    steps = [lambda seed=seed: step(student, optimizer, seed) for seed in range(3)]

    look_wide(wide, student, steps, start)
    ends = []
    for seed in range(3):
        twin = copy.deepcopy(origin)
        step(twin, torch.optim.SGD(twin.parameters(), lr=0.1), seed)
        ends.append(twin[2].weight)  # type: ignore[index]
    mean = torch.stack(list(ends)).mean(0)
    # float32: sums of three numbers below 1.
    torch.testing.assert_close(wide.model[2].weight, (origin[2].weight + mean) / 2, atol=1e-6, rtol=0)  # type: ignore[index]
    torch.testing.assert_close(student[2].weight, mean, atol=1e-6, rtol=0)  # type: ignore[index]

    start.restore()
    look_deep(deep, student, steps)
    twin = copy.deepcopy(origin)
    average, other = origin[2].weight.detach().clone(), torch.optim.SGD(twin.parameters(), lr=0.1)  # type: ignore[index, union-attr]
    for seed in range(3):
        step(twin, other, seed)
        average = (average + twin[2].weight.detach()) / 2  # type: ignore[index, union-attr]
    torch.testing.assert_close(deep.model[2].weight, average, atol=1e-6, rtol=0)  # type: ignore[index]
    assert int(deep.num_updates) == 3
    assert int(wide.num_updates) == 1


def test_batch_statistics_leave_the_running_ones_alone(student: nn.Module) -> None:
    images = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    student.eval()
    before = copy.deepcopy(student.state_dict())
    plain = student(images)
    with batch_statistics(student):
        of_the_batch = student(images)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert torch.equal(student(images), plain)
    assert torch.equal(of_the_batch, copy.deepcopy(student).train()(images))
    assert not torch.allclose(of_the_batch, plain)
