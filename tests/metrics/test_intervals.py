import pytest
from scipy.stats import ttest_1samp

from limbeck.metrics.intervals import student_interval


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_is_students(level: float) -> None:
    values = [0.3, -0.1, 0.25, 0.4]
    wanted = ttest_1samp(values, 0).confidence_interval(level)
    assert student_interval(values, level) == pytest.approx(tuple(wanted), rel=1e-12)


def test_one_value_says_nothing_about_spread() -> None:
    assert student_interval([0.3]) is None
