"""Learning-rate schedules: pure functions of the share of training that is done, so nothing is restored."""

import math
from collections.abc import Callable, Sequence

from limbeck.errors import LimbeckError

Schedule = Callable[[int, int], float]
"""(update from 0, total updates) -> factor on the optimiser's learning rate."""


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise LimbeckError(f"fit.schedule.{name} is {value}; it is a share of the updates, from 0 to 1")


def _warmed(schedule: Schedule, warmup: float) -> Schedule:
    _share("warmup", warmup)

    def factor(update: int, total: int) -> float:
        ramp = warmup * total
        return (update + 1) / (ramp + 1) if update < ramp else schedule(update, total)

    return factor


def cosine(warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """Half a cosine from 1 to ``final``.

    Args:
        warmup: share of the updates (0 to 1) over which the rate first rises linearly.
        final: factor reached at the end.
    """
    return _warmed(lambda u, n: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * u / n)), warmup)


def linear(warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """A straight line from 1 to ``final``.

    Args:
        warmup: share of the updates (0 to 1) over which the rate first rises linearly.
        final: factor reached at the end.
    """
    return _warmed(lambda u, n: 1 - (1 - final) * u / n, warmup)


def multistep(milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1, warmup: float = 0.0) -> Schedule:
    """The rate is multiplied by ``gamma`` at every milestone.

    Args:
        milestones: shares of the updates (0 to 1) that are done when the rate drops.
        gamma: factor of each drop.
        warmup: share of the updates (0 to 1) over which the rate first rises linearly.
    """
    for milestone in milestones:
        _share("milestones", milestone)
    return _warmed(lambda u, n: gamma ** sum(u >= m * n for m in milestones), warmup)


def constant(warmup: float = 0.0) -> Schedule:
    """The same rate throughout.

    Args:
        warmup: share of the updates (0 to 1) over which the rate first rises linearly.
    """
    return _warmed(lambda u, n: 1.0, warmup)
