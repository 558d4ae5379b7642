"""Plain steps of SGD at a client."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.data.data import Batch
from limbeck.data.stream import Stream


def local_steps(
    model: nn.Module,
    stream: Stream,
    steps: int,
    loss: Callable[[Batch], Tensor],
    *,
    number: int,
    lr: float,
    momentum: float = 0.0,
) -> None:
    """Train ``model`` by some steps of SGD on the next batches of a client's stream.

    Args:
        model: is changed.
        stream: of the client's samples; each round goes on where the one before would have ended.
        steps: number of steps.
        loss: of a batch, scalar.
        number: the round, from 0.
        lr: learning rate.
        momentum: of SGD; starts at rest in each round.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    for batch in itertools.islice(stream.batches(number * steps, (number + 1) * steps), steps):
        optimizer.zero_grad(set_to_none=True)
        loss(batch).backward()
        optimizer.step()
