from functools import partial
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from limbeck.errors import LimbeckError
from limbeck.labels import align_distribution
from limbeck.teachers.running_means import BatchMeans, MovingMean


def batches(count: int, size: int = 4, classes: int = 3) -> torch.Tensor:
    return torch.randn(count, size, classes, generator=torch.Generator().manual_seed(0)).softmax(-1)


def test_marginal_is_the_mean_of_the_last_batch_means() -> None:
    marginal = BatchMeans(3, 3)
    seen = batches(8)
    for number, batch in enumerate(seen):
        expected = seen[max(0, number - 2) : number + 1].mean((0, 1))
        torch.testing.assert_close(marginal(batch), expected)
        assert torch.equal(marginal(batch), marginal(batch))  # reading remembers nothing
        marginal.update(batch)
    assert int(marginal.num_batches) == 8
    # float32 sums in another order.
    torch.testing.assert_close(marginal.queue.mean(0), seen[-3:].mean((0, 1)))


def test_alignment_by_the_zeros_of_an_unfilled_queue() -> None:
    """The released code divides by the mean of a queue that begins with zeros: only relative values matter."""
    marginal, queue = BatchMeans(32, 3), torch.zeros(32, 3)
    for number, p in enumerate(batches(5)):
        queue[number] = p.mean(0)
        expected = p / queue.mean(0)
        expected = expected / expected.sum(-1, keepdim=True)
        # 1e-6 is added to the marginals, which are above 0.1 here.
        torch.testing.assert_close(align_distribution(p, marginal(p)), expected, rtol=2e-5, atol=0)
        marginal.update(p)


def test_a_uniform_marginal_aligns_nothing() -> None:
    p = torch.stack([torch.tensor([0.7, 0.2, 0.1]).roll(shift) for shift in range(3)])
    torch.testing.assert_close(align_distribution(p, BatchMeans(4, 3)(p)), p)


def test_moving_mean_begins_with_the_first_batch() -> None:
    ratio = MovingMean(0.9)
    expected = None
    for values in batches(5)[..., 0]:
        mean = values.mean().item()
        expected = mean if expected is None else 0.9 * expected + 0.1 * mean
        assert ratio(values).item() == pytest.approx(expected, rel=1e-6)
        ratio.update(values)
        assert ratio.average.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("decay", "after"), [(0.0, 1.0), (1.0, 0.0), (None, 1 / 3)])
def test_limits_of_the_moving_mean(decay: float | None, after: float) -> None:
    mean = MovingMean(decay)
    for value in (0.0, 0.0, 1.0):
        mean.update(torch.tensor([value, value]))
    assert mean.average.item() == pytest.approx(after, rel=1e-6)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_mean_that_begins_anew_is_that_of_the_batches_since(decay: float | None) -> None:
    ratio, since = MovingMean(decay, restart=2), MovingMean(decay)
    for number, values in enumerate(batches(5)[..., 0]):
        if number % 2 == 0:
            since = MovingMean(decay)
        assert torch.equal(ratio(values), since(values))
        ratio.update(values)
        since.update(values)
        assert torch.equal(ratio.average, since.average)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_several_means_at_once(decay: float | None) -> None:
    both, alone = MovingMean(decay, (3,)), [MovingMean(decay) for _ in range(3)]
    for values in batches(4):
        torch.testing.assert_close(both(values), torch.stack([one(values[:, k]) for k, one in enumerate(alone)]))
        both.update(values)
        for k, one in enumerate(alone):
            one.update(values[:, k])
    torch.testing.assert_close(both.average, torch.stack([one.average for one in alone]))


def test_state_is_saved_and_kept_in_float32() -> None:
    for statistic, twin in ((BatchMeans(4, 3), BatchMeans(4, 3)), (MovingMean(0.5), MovingMean(0.5))):
        for batch in batches(3):
            statistic.update(batch if isinstance(statistic, BatchMeans) else batch[:, 0])
        twin.load_state_dict(statistic.to(torch.bfloat16).state_dict())
        batch = batches(4)[3] if isinstance(statistic, BatchMeans) else batches(4)[3, :, 0]
        assert torch.equal(twin(batch), statistic(batch))
        assert {value.dtype for value in statistic.state_dict().values()} == {torch.float32, torch.int64}


def test_a_restored_mean_goes_on_where_it_was() -> None:
    for make in (lambda: BatchMeans(3, 3), lambda: MovingMean(None), lambda: MovingMean(0.9)):
        whole, restored = make(), make()
        drawn = [batch if isinstance(whole, BatchMeans) else batch[:, 0] for batch in batches(7)]
        for values in drawn[:4]:
            whole.update(values)
        for old, new in zip(restored.buffers(), whole.buffers(), strict=True):
            old.copy_(new)  # as state is brought back to shards
        for values in drawn[4:]:
            assert torch.equal(restored(values), whole(values))
            whole.update(values)
            restored.update(values)
        assert all(torch.equal(a, b) for a, b in zip(restored.buffers(), whole.buffers(), strict=True))


def test_the_count_stays_on_the_host() -> None:
    made = BatchMeans(3, 3).to("meta")
    assert (made.queue.device.type, made.num_batches.device.type) == ("meta", "cpu")


def test_errors() -> None:
    with pytest.raises(LimbeckError, match="0 batches and 3 classes"):
        BatchMeans(0, 3)
    with pytest.raises(LimbeckError, match=r"decay .* must be in \[0, 1\], got 1\.5"):
        MovingMean(1.5)
    with pytest.raises(LimbeckError, match="cannot begin anew after 0 batches"):
        MovingMean(0.5, restart=0)


def _in_a_process(fabric: Fabric, folder: Path) -> None:
    marginal, ratio = BatchMeans(2, 3), MovingMean(0.5)
    read = []
    for batch in batches(3):
        mine = batch[fabric.global_rank :: fabric.world_size]
        read += [marginal(mine), ratio(mine[:, 0])]
        marginal.update(mine)
        ratio.update(mine[:, 0])
    torch.save([*read, marginal.queue, ratio.average], folder / f"{fabric.global_rank}.pt")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    alone = Fabric(accelerator="cpu", devices=1)
    _in_a_process(alone, tmp_path)
    expected = torch.load(tmp_path / "0.pt", weights_only=True)
    Fabric(accelerator="cpu", strategy="ddp_fork", devices=2).launch(partial(_in_a_process, folder=tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for one, other, single in zip(first, second, expected, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, single)
