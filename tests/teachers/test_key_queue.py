from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.teachers.key_queue import KeyQueue


def keys(count: int, start: int = 0) -> torch.Tensor:
    """Key n is (n, -n)."""
    numbers = torch.arange(start, start + count).float()
    return torch.stack([numbers, -numbers], dim=1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.lists(st.integers(1, 9), max_size=5))
def test_holds_the_last_ones(size: int, batches: list[int]) -> None:
    queue, pushed = KeyQueue(size, 2), 0
    for count in batches:
        queue.push(keys(count, pushed), torch.arange(pushed, pushed + count))
        pushed += count
    seen = queue.labels >= 0
    assert sorted(queue.labels[seen].tolist()) == list(range(max(0, pushed - size), pushed))
    # Each key keeps its own label.
    assert torch.equal(queue.keys[seen][:, 0], queue.labels[seen].float())
    assert not queue.keys[~seen].any()


def test_carries_no_gradient_and_survives_a_restart_and_a_cast() -> None:
    queue, again = KeyQueue(4, 2), KeyQueue(4, 2)
    queue.push((keys(3) / 3).requires_grad_(), torch.arange(3))
    again.load_state_dict(queue.state_dict())
    nn.ModuleList([again]).to(torch.bfloat16)
    for one in (queue, again):
        one.push(keys(2), torch.tensor([7, 8]))
    assert not queue.keys.requires_grad
    assert torch.equal(queue.keys, again.keys)
    assert queue.labels.tolist() == again.labels.tolist() == [8, 1, 2, 7]


def _in_a_process(fabric: Fabric, folder: Path) -> None:
    queue = KeyQueue(6, 2)
    for start in (0, 4):
        mine = slice(fabric.global_rank, None, fabric.world_size)
        queue.push(keys(4, start)[mine], torch.arange(start, start + 4)[mine])
    torch.save(queue.state_dict(), folder / f"{fabric.global_rank}.pt")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    queue = KeyQueue(6, 2)
    for start in (0, 4):
        queue.push(keys(4, start), torch.arange(start, start + 4))
    Fabric(accelerator="cpu", strategy="ddp_fork", devices=2).launch(partial(_in_a_process, folder=tmp_path))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(found[name], value) for name, value in queue.state_dict().items())


def test_refuses_to_be_empty() -> None:
    with pytest.raises(LimbeckError, match="a queue of 0 keys of 2 numbers holds nothing"):
        KeyQueue(0, 2)
