import math

import pytest

from limbeck.metrics.dataset_distillation import hard_label_recovery, improvement_over_random, label_robust_score


def test_worked_values() -> None:
    assert hard_label_recovery(0.9, 0.3) == pytest.approx(0.6)
    assert improvement_over_random(0.5, 0.4) == pytest.approx(0.1)
    # alpha = 0.5 0.1 - 0.5 0.6 = -0.25.
    assert label_robust_score(0.6, 0.1) == pytest.approx((math.exp(-0.25) - math.exp(-1)) / (math.e - math.exp(-1)))


def test_limits() -> None:
    assert label_robust_score(-1.0, 1.0) == pytest.approx(1)
    assert label_robust_score(1.0, -1.0) == 0
    assert label_robust_score(0.5, 0.2, weight=1) == label_robust_score(0.1, 0.2, weight=1)
    assert label_robust_score(0.5, 0.3) > label_robust_score(0.5, 0.2) > label_robust_score(0.6, 0.2)
