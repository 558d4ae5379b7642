import pytest
import torch

from limbeck.data import Samples, Stream
from limbeck.data.turn_stream import TurnStream


@pytest.mark.parametrize("workers", [0, 1])
def test_moves_on_after_its_own_turns(workers: int) -> None:
    samples = Samples(torch.rand(7, 1, 8, 8), torch.arange(7) % 3, ("a", "b", "c"))
    plain = Stream(samples, 3, 5, {"image": "weak"}, name="unlabeled", flip=True)
    turns = [False, True, True, False, True]
    expected = 0
    found = list(TurnStream(plain, turns).batches(4, 23, workers=workers))
    for number in range(23):
        if number >= 4:
            own, other = found[number - 4], plain.batch(expected)
            assert own.keys() == other.keys()
            assert all(torch.equal(own[name], other[name]) for name in own)
        expected += turns[number % 5]
