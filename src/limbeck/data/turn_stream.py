"""Streams that take turns."""

from collections.abc import Sequence
from itertools import accumulate

from limbeck.data.data import Batch
from limbeck.data.stream import Stream


class TurnStream(Stream):
    """A stream of which only some updates use their batch: it moves on after those, so that they make whole passes.

    Args:
        stream: what is read.
        turns: whether it is this stream's turn, for each update of a period that comes again and again.
    """

    def __init__(self, stream: Stream, turns: Sequence[bool]) -> None:
        super().__init__(stream.samples, stream.batch_size, stream.seed, stream.views, stream.name, stream.flip)
        self.before = [0, *accumulate(map(int, turns))]

    def batch(self, number: int, *, rank: int = 0, world: int = 1) -> Batch:
        """As :meth:`Stream.batch`, for update ``number``; where it is another stream's turn, the next one's."""
        periods, place = divmod(number, len(self.before) - 1)
        return super().batch(periods * self.before[-1] + self.before[place], rank=rank, world=world)
