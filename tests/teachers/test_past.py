from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.teachers import PastPredictions
from limbeck.teachers.past import _last_occurrence

ROWS, CLASSES = 10, 3


def probabilities(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, CLASSES, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


def test_reads_what_was_written() -> None:
    past = PastPredictions(ROWS, CLASSES)
    written = probabilities(3)
    past.write(torch.tensor([7, 0, 4]), written)
    values, seen = past.read(torch.tensor([0, 1, 7, 4, 0]))
    assert seen.tolist() == [True, False, True, True, True]
    assert torch.equal(values[[0, 2, 3, 4]], written[[1, 0, 2, 1]])
    assert not values[1].any()
    assert values.dtype == torch.float32
    assert int(past.seen.sum()) == 3


def test_later_writes_replace_earlier_ones_and_carry_no_gradient() -> None:
    past = PastPredictions(ROWS, CLASSES)
    past.write(torch.tensor([2]), probabilities(1, seed=0))
    newer = probabilities(1, seed=1).requires_grad_()
    past.write(torch.tensor([2]), newer)
    values, _ = past.read(torch.tensor([2]))
    assert torch.equal(values, newer.detach())
    assert not values.requires_grad


@given(st.lists(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=12), max_size=4))
def test_equals_a_loop_also_with_samples_that_occur_twice(batches: list[list[int]]) -> None:
    past = PastPredictions(ROWS, CLASSES)
    table, seen = np.zeros((ROWS, CLASSES), np.float32), np.zeros(ROWS, bool)
    for number, batch in enumerate(batches):
        written = probabilities(len(batch), seed=number)
        past.write(torch.tensor(batch), written)
        for row, value in zip(batch, written.numpy(), strict=True):
            table[row], seen[row] = value, True
    values, known = past.read(torch.arange(ROWS))
    np.testing.assert_array_equal(values.numpy(), table)
    np.testing.assert_array_equal(known.numpy(), seen)


def test_last_occurrence() -> None:
    """On a GPU the order of writes to one row is undefined: all of them must write the same."""
    assert _last_occurrence(torch.tensor([3, 1, 3, 3, 1, 0])).tolist() == [3, 4, 3, 3, 4, 5]


def test_half_precision_storage() -> None:
    past = PastPredictions(ROWS, CLASSES, dtype="float16")
    assert past.table.dtype == torch.float16
    written = probabilities(ROWS)
    past.write(torch.arange(ROWS), written)
    values, _ = past.read(torch.arange(ROWS))
    assert values.dtype == torch.float32
    assert torch.equal(values, written.half().float())
    # Half the distance of two numbers of 11 bits below 1.
    assert (values - written).abs().max() <= 2**-12


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_storage_is_kept_when_the_owner_is_cast(dtype: str) -> None:
    past = PastPredictions(ROWS, CLASSES, dtype=dtype)  # type: ignore[arg-type]
    past.write(torch.arange(ROWS), probabilities(ROWS))
    before = past.table.clone()
    nn.ModuleList([past]).to(torch.bfloat16)
    assert past.table.dtype == before.dtype
    assert torch.equal(past.table, before)
    past.write(torch.tensor([0]), probabilities(1).bfloat16())
    assert torch.equal(past.read(torch.tensor([0]))[0], probabilities(1).bfloat16().to(before.dtype).float())


def test_state_survives_a_restart() -> None:
    past, resumed = PastPredictions(ROWS, CLASSES), PastPredictions(ROWS, CLASSES)
    past.write(torch.tensor([1, 2]), probabilities(2))
    resumed.load_state_dict(past.state_dict())
    for first, second in zip(past.read(torch.arange(ROWS)), resumed.read(torch.arange(ROWS)), strict=True):
        assert torch.equal(first, second)
    assert list(past.parameters()) == []
    assert PastPredictions.synchronised is False


@pytest.mark.parametrize("row", [-1, ROWS, ROWS + 5])
def test_index_out_of_range(row: int) -> None:
    past = PastPredictions(ROWS, CLASSES)
    index = torch.tensor([3, row])
    with pytest.raises(LimbeckError, match=rf"index {row} is outside the table .* has 10 samples"):
        past.read(index)
    with pytest.raises(LimbeckError, match=rf"index {row} is outside"):
        past.write(index, probabilities(2))
    assert not past.seen.any()


def test_errors() -> None:
    past = PastPredictions(ROWS, CLASSES)
    with pytest.raises(LimbeckError, match=r"index must be int64 \[B\], got torch.int32"):
        past.read(torch.tensor([1], dtype=torch.int32))
    with pytest.raises(LimbeckError, match=r"probabilities must be \[1, 3\], got \[1, 4\]"):
        past.write(torch.tensor([1]), torch.ones(1, 4))
    with pytest.raises(LimbeckError, match="0 samples and 3 classes"):
        PastPredictions(0, CLASSES)
    with pytest.raises(LimbeckError, match="'float16', 'float32'"):
        PastPredictions(1, 1, dtype="bfloat16")  # type: ignore[arg-type]


# Samples that occur twice: the last one counts, whichever process holds it.
BATCHES = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 8, 9], [0, 5, 5, 5], [1, 1, 1, 3]]


def _write(past: PastPredictions, rank: int, world: int) -> None:
    for number, batch in enumerate(BATCHES):
        index, written = torch.tensor(batch), probabilities(len(batch), seed=number)
        past.write(index[rank::world], written[rank::world])


def _in_a_process(fabric: Fabric, folder: Path, dtype: str) -> None:
    past = PastPredictions(ROWS, CLASSES, dtype=dtype)  # type: ignore[arg-type]
    _write(past, fabric.global_rank, fabric.world_size)
    torch.save(past.state_dict(), folder / f"{fabric.global_rank}.pt")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_two_processes_equal_one(tmp_path: Path, dtype: str) -> None:
    fabric = Fabric(accelerator="cpu", strategy="ddp_fork", devices=2)
    fabric.launch(partial(_in_a_process, folder=tmp_path, dtype=dtype))
    one = PastPredictions(ROWS, CLASSES, dtype=dtype)  # type: ignore[arg-type]
    _write(one, rank=0, world=1)
    assert one.seen.all()
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(state["table"], one.table)
        assert torch.equal(state["seen"], one.seen)
