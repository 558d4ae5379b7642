import math

import pytest
from scipy.stats import ttest_1samp

from limbeck.metrics.directions import BETTER
from limbeck.report.numbers import METRICS, metric, paired_interval, primary, seconds, signed, spread, written


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.9624, "96.2 %"),
        ("ece", 0.01234, "1.23 %"),
        ("scaled/ece", 0.01234, "1.23 %"),
        ("nll", 0.13149, "0.131"),
        ("latency_ms", 0.5312, "0.531 ms"),
        ("parameters", 650.0, "650"),
        ("parameters", 14810.0, "14.8 k"),
        ("macs", 999_900.0, "1000 k"),
        ("macs", 1.234e9, "1.23 G"),
        ("accuracy", math.nan, "not finite"),
    ],
)
def test_a_value_is_written_in_its_metrics_own_way(name: str, value: float, text: str) -> None:
    assert written(name, value) == text


def test_spread_is_the_sample_standard_deviation() -> None:
    assert spread("accuracy", [0.95, 0.96, 0.97]) == "96.0 ± 1.0 %"  # population deviation would be 0.8
    assert spread("accuracy", [0.95]) == "95.0 %"
    assert spread("parameters", [650.0, 650.0]) == "650"
    assert spread("nll", []) == "\u2013"
    assert spread("nll", [0.1, math.nan]) == "not finite"


def test_differences_carry_their_sign_and_points() -> None:
    assert signed("accuracy", 0.0121) == "+1.21 points"
    assert signed("ece", -0.0121, unit=False) == "\u22121.21"
    assert signed("nll", -0.01234) == "\u22120.0123"
    assert signed("parameters", -14810.0) == "\u221214.8 k"


def test_paired_interval_is_students() -> None:
    values = [0.011, 0.004, -0.002, 0.016, 0.007]
    assert paired_interval(values) == pytest.approx(tuple(ttest_1samp(values, 0).confidence_interval(0.95)), rel=1e-12)


@pytest.mark.parametrize("values", [[], [0.1], [0.1, math.nan], [0.1, 0.1, 0.1]])
def test_no_interval_without_a_spread(values: list[float]) -> None:
    assert paired_interval(values) is None


@pytest.mark.parametrize(
    ("value", "text"), [(0.84, "0.8 s"), (42.2, "42 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 05 min")]
)
def test_durations(value: float, text: str) -> None:
    assert seconds(value) == text


def test_accuracy_comes_first_and_unknown_metrics_keep_their_name() -> None:
    assert primary(["nll", "accuracy"]) == "accuracy"
    assert primary(["map", "map_50"]) == "map"
    assert primary([]) is None
    assert metric("odd_one").label == "odd_one"


def test_every_headline_metric_has_a_name_and_one_direction() -> None:
    assert {name: METRICS[name].better for name in BETTER} == BETTER
