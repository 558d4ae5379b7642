"""Streams: every batch is a pure function of (seed, batch number)."""

import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data import Samples, Stream, eval_batches
from limbeck.data.load import load
from limbeck.data.pixels import Lazy
from limbeck.data.random import derive, permutation
from limbeck.data.views import apply
from limbeck.errors import LimbeckError


def make(count=10):
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Samples(images, torch.arange(count) % 3, ("a", "b", "c"))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@settings(max_examples=60)
@given(count=st.integers(1, 12), batch=st.integers(1, 30), seed=st.integers(0, 2**62))
def test_every_epoch_holds_every_sample_once(count, batch, seed):
    stream = Stream(make(count), batch, seed, {"image": "none"})
    batches = list(stream.batches(0, 3 * count))
    assert all(len(found["index"]) == batch for found in batches)
    indices = torch.cat([found["index"] for found in batches])
    epochs = torch.cat([found["epoch"] for found in batches])
    assert epochs.tolist() == [position // count for position in range(3 * count * batch)]
    for epoch in range(3 * batch):
        assert sorted(indices[epochs == epoch].tolist()) == list(range(count))


@settings(max_examples=30)
@given(start=st.integers(0, 40), batch=st.integers(1, 25))
def test_starting_later_skips_batches(start, batch):
    whole = list(Stream(make(), batch, 3, {"image": "weak"}).batches(0, start + 3))
    resumed = list(Stream(make(), batch, 3, {"image": "weak"}).batches(start, start + 3))
    assert len(resumed) == 3
    assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_batches_may_be_asked_for_in_any_order():
    stream = Stream(make(), 4, 0, {"image": "weak"})
    in_order = list(stream.batches(0, 20))
    for number in (19, 0, 7, 19, 3):
        assert same(stream.batch(number), in_order[number])


@pytest.mark.parametrize("count", [1, 40, 1400, 5000])
def test_the_order_of_an_epoch_is_the_permutation_of_its_key(count):
    # Few samples have the orders of many epochs made at once: 103 of them where there are 40.
    stream = Stream(make(count), count, 3, {"image": "none"}, name="unlabeled")
    for epoch in (0, 1, 102, 103, 104, 102, 5000):
        expected = permutation(derive(3, "order", "unlabeled", epoch), count).tolist()
        assert stream.batch(epoch)["index"].tolist() == expected


def test_order_depends_on_seed_epoch_and_name():
    samples = make(50)

    def order(seed, name, epoch):
        return Stream(samples, 50, seed, {"image": "weak"}, name=name).batch(epoch)["index"].tolist()

    orders = [order(0, "train", 0), order(1, "train", 0), order(0, "unlabeled", 0), order(0, "train", 1)]
    assert len({tuple(found) for found in orders}) == 4
    assert orders[0] != sorted(orders[0])


def test_the_samples_of_a_batch_belong_together():
    samples = make().subset([9, 2, 5, 7]).unlabel()
    for batch in Stream(samples, 3, 1, {"image": "none"}).batches(0, 5):
        for row, index in enumerate(batch["index"].tolist()):
            assert torch.equal(batch["image"][row], make()[index]["image"])
            assert batch["hidden_label"][row] == index % 3
        assert (batch["label"] == -1).all()
    assert "hidden_label" not in Stream(make(), 3, 1, {"image": "weak"}).batch(0)


def test_views_can_be_replayed():
    samples = make()
    stream = Stream(
        samples, 7, 5, {"first": "weak", "second": "strong", "third": "strong:2", "plain": "none"}, flip=True
    )
    batch = stream.batch(4)
    images = samples.fetch(batch["index"])["image"]  # here indices are positions
    assert torch.equal(batch["plain"], images)
    for key, view in (("first", "weak"), ("second", "strong"), ("third", "strong:2")):
        replay = apply(view, images, seed=5, epochs=batch["epoch"], indices=batch["index"], flip=True)
        assert torch.equal(batch[key], replay)
    assert not torch.equal(batch["second"], batch["third"])
    assert "image" not in batch


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_each_batch(world):
    stream = Stream(make(), 6, 0, {"image": "weak"})
    parts = [list(stream.batches(0, 5, rank=rank, world=world)) for rank in range(world)]
    for number, whole in enumerate(stream.batches(0, 5)):
        for rank in range(world):
            assert same({name: value[rank::world] for name, value in whole.items()}, parts[rank][number])


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(LimbeckError, match="batch of 6 cannot be divided among 4"):
        Stream(make(), 6, 0, {"image": "weak"}).batches(0, 1, rank=0, world=4)


def test_workers_change_nothing():
    samples = make(30).unlabel()
    arguments = samples, 8, 2, {"image": "weak", "strong": "strong"}
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    alone = list(Stream(*arguments, flip=True).batches(3, 12, rank=1, world=2))
    helped = list(Stream(*arguments, flip=True).batches(3, 12, rank=1, world=2, workers=2))
    assert len(helped) == 9
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def broken(row):
    if row == 3:
        raise LimbeckError("cat/3.jpg: damaged")
    return torch.zeros(1, 4, 4)


def test_errors_in_workers_arrive_as_they_are():
    samples = Samples(Lazy(broken, 5, (1, 4, 4), str), torch.zeros(5), ("cat",))
    with pytest.raises(LimbeckError) as caught:
        list(Stream(samples, 5, 0, {"image": "weak"}).batches(0, 2, workers=1))
    assert str(caught.value) == "cat/3.jpg: damaged"


def test_changing_a_batch_changes_no_other():
    stream = Stream(make(), 10, 0, {"image": "none"})
    kept = {name: value.clone() for name, value in stream.batch(0).items()}
    for value in stream.batch(0).values():
        value.zero_()
    assert same(stream.batch(0), kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 4, "views": {"image": "stron"}}, "Did you mean 'strong'"),
        ({"batch_size": 4, "views": {"a": "weak", "b": "weak"}}, "'a' and 'b' are both the view 'weak'.*'weak:2'"),
    ],
)
def test_wrong_streams_are_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        Stream(make(), seed=0, **options)


def test_evaluation_goes_through_all_samples_in_order():
    samples = make().subset([3, 1, 4, 0, 5])
    batches = list(eval_batches(samples, 2))
    assert [batch["index"].tolist() for batch in batches] == [[3, 1], [4, 0], [5]]
    assert torch.equal(batches[1]["image"][0], make()[4]["image"])


def test_a_plain_batch_of_digits_costs_next_to_nothing():
    stream = Stream(load("digits", 0).train, 64, 0, {"image": "none"})
    best = float("inf")
    # The processor time of the fastest of many short stretches: other processes can only make it slower.
    for first in range(0, 4000, 40):
        start = time.thread_time()
        for _ in stream.batches(first, first + 40):
            pass
        best = min(best, (time.thread_time() - start) / 40)
    assert best < 60e-6
