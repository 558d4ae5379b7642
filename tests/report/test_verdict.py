from pathlib import Path

import pytest

from limbeck.report.folder import Arm, Difference, Loaded
from limbeck.report.verdict import headline, verdict


def difference(low: float | None, high: float | None, **changed: object) -> Difference:
    mean = 0.01 if low is None or high is None else (low + high) / 2
    values = {"arm": "kd", "baseline": "ce", "metric": "accuracy", "better": "higher", "mean": mean, "seeds": 5}
    return Difference(**{**values, "low": low, "high": high, **changed})  # type: ignore[arg-type]


def arm(name: str, accuracy: list[float], teacher: list[float] = ()) -> Arm:  # type: ignore[assignment]
    metrics = {"accuracy": accuracy, "parameters": [650.0] * len(accuracy)}
    known = {"accuracy": list(teacher), "parameters": [13000.0] * len(teacher)} if teacher else {}
    return Arm(name, name, metrics, known, [], ())


def loaded(*differences: Difference, arms: tuple[Arm, ...] = (arm("ce", [0.9]), arm("kd", [0.9]))) -> Loaded:
    return Loaded(Path(), "title", arms, "ce" if differences else None, differences, "", {}, ())


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
        (0.003, 0.02, "higher", "better"),
        (-0.02, -0.003, "higher", "worse"),
        (0.003, 0.02, "lower", "worse"),
        (-0.02, -0.003, "lower", "better"),
        (-0.001, 0.02, "higher", "undecided"),
        (0.0, 0.02, "higher", "undecided"),
        (None, None, "higher", "undecided"),
    ],
)
def test_only_an_interval_clear_of_zero_decides(
    low: float | None, high: float | None, better: str, expected: str
) -> None:
    assert verdict(difference(low, high, better=better)) == expected


def test_the_sentence_says_who_by_how_much_and_how_sure() -> None:
    said = headline(loaded(difference(0.003, 0.021))).sentence
    assert said == "kd is better than ce in test accuracy: +1.20 points (95% interval +0.30 to +2.10, 5 seeds)."
    said = headline(loaded(difference(-0.021, -0.003))).sentence
    assert said.startswith("kd is worse than ce in test accuracy: \u22121.20 points")


def test_no_claim_without_evidence() -> None:
    said = headline(loaded(difference(-0.003, 0.021))).sentence
    assert said.startswith("No difference between kd and ce in test accuracy can be claimed: +0.90 points")
    said = headline(loaded(difference(None, None, seeds=1))).sentence
    assert said.endswith("can be claimed: +1.00 points, and 1 seed gives no interval.")
    both = headline(loaded(difference(-0.003, 0.021), difference(-0.01, 0.01, arm="ps-kd")))
    assert both.sentence == "No difference from ce in test accuracy can be claimed for kd or ps-kd."
    assert len(both.details) == 2


def test_the_clear_winner_comes_first_and_other_metrics_are_told() -> None:
    result = headline(
        loaded(
            difference(-0.02, 0.03, arm="a"),
            difference(0.003, 0.02, arm="b"),
            difference(0.003, 0.02, arm="b", metric="nll", better="lower"),
            difference(-0.02, -0.01, arm="b", metric="ece", better="lower"),
            difference(-0.02, 0.01, arm="b", metric="aurc", better="lower"),
        )
    )
    assert result.sentence.startswith("b is better than ce in test accuracy")
    assert result.details[0].startswith("No difference between a and ce")
    assert result.details[1] == (
        "Beyond accuracy, b against ce: better in ECE; worse in NLL; not to be told apart in AURC."
    )


def test_one_method_is_set_against_its_teacher() -> None:
    result = headline(loaded(arms=(arm("kd", [0.9, 0.91, 0.92], [0.95, 0.95, 0.95]),)))
    assert result.sentence == "kd reaches 91.0 ± 1.0 % test accuracy over 3 seeds."
    assert (
        "the student is worse (\u22124.00 points, 95% interval \u22126.48 to \u22121.52 over seeds)"
        in result.details[0]
    )
    assert result.details[1] == "The student has 20 times fewer parameters than the teacher."


def test_one_seed_makes_no_claim_against_the_teacher() -> None:
    result = headline(loaded(arms=(arm("kd", [0.9], [0.95]),)))
    assert "its spread is not known" in result.sentence
    assert "that is no claim" in result.details[0]


def test_arms_that_were_not_tested_are_not_ranked() -> None:
    said = headline(loaded(arms=(arm("ce", [0.9]), arm("kd", [0.95])))).sentence
    assert said.endswith("Nothing was tested for a difference, so none can be claimed.")
