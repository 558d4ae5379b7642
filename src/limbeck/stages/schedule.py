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


def cosine(warmup: float = 0.0, final: float = 0.0, eta: float = 1.0) -> Schedule:
    """Half a cosine from 1 to ``final``.

    Args:
        warmup: share of the updates (0 to 1) over which the rate first rises linearly.
        final: factor reached at the end of the half cosine.
        eta: how many times as long as the training the half cosine is, at least 1: with 2 the training ends in its
            middle (the smoothed schedule of CV-DD, arXiv 2501.07575).
    """
    if not eta >= 1:
        raise LimbeckError(f"fit.schedule.eta is {eta}; the half cosine is at least as long as the training, 1 or more")
    return _warmed(lambda u, n: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * u / (eta * n))), warmup)


def quarter_cosine(share: float = 7 / 8, warmup: float = 0.0) -> Schedule:
    """The first ``share`` of a quarter of a cosine: ``cos(share pi/2 u/n)`` in update u of n.

    With 7/8 it is ``cos(7 pi u / 16 n)``, the schedule of FixMatch (arXiv 2001.07685, section 2.3), which ends at
    0.195.

    Args:
        share: how much of the quarter is gone through, 0 to 1; at 1 the rate ends at 0.
        warmup: share of the updates (0 to 1) over which the rate first rises linearly.
    """
    _share("share", share)
    return _warmed(lambda u, n: math.cos(share * math.pi / 2 * u / n), warmup)


def linear(warmup: float = 0.0, final: float = 0.0, power: float = 1.0) -> Schedule:
    """A straight line from 1 to ``final``, or with a ``power`` the polynomial schedule of segmentation.

    Args:
        warmup: share of the updates (0 to 1) over which the rate first rises linearly.
        final: factor reached at the end.
        power: of the share of the updates that is left; 0.9 in DeepLab (arXiv 1606.00915).
    """
    if not power > 0:
        raise LimbeckError(f"fit.schedule.power is {power}; it must be above 0")
    return _warmed(lambda u, n: final + (1 - final) * (1 - u / n) ** power, warmup)


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
