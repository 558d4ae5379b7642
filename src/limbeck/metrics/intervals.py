"""How sure a mean over seeds is."""

import math
import statistics
from collections.abc import Sequence


def student_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """The interval of a mean by Student's t with n - 1 degrees of freedom.

    None with fewer than two values: one says nothing about spread.
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half
