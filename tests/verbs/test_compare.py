"""The verb compare: paired differences, honest words, results that do not depend on how they were run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.metrics.directions import BETTER
from limbeck.verbs.compare import compare, paired_difference, read_comparison
from limbeck.verbs.runs import Job, run_all

QUICK: dict[str, Any] = {"student": {"name": "mlp", "hidden": 8}, "fit": {"updates": 12, "batch_size": 32}}
ARMS: dict[str, Any] = {
    "plain": {"method": "supervised"},
    "smooth": {"method": "supervised", "label_smoothing": 0.3},
}
VARYING = ("latency_ms", "seconds")


def stable(value: Any) -> Any:
    """Without what is measured in time."""
    if isinstance(value, dict):
        return {key: stable(part) for key, part in value.items() if key.rpartition("/")[2] not in VARYING}
    return [stable(part) for part in value] if isinstance(value, list) else value


def comparison(folder: Path) -> Any:
    return json.loads((folder / "comparison.json").read_text())


class Module(nn.Sequential):
    """A module of a user's own that another process can import."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))


values = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12)


@given(values)
def test_paired_differences_are_those_of_scipy(pairs: list[tuple[float, float]]) -> None:
    ours, baseline = (np.array(column) for column in zip(*pairs, strict=True))
    found = paired_difference(ours.tolist(), baseline.tolist())
    # Both sum a dozen numbers below 1 in float64: 1e-9 leaves six digits for the quantile of t.
    assert found["mean"] == pytest.approx((ours - baseline).mean(), abs=1e-9)
    if np.ptp(ours - baseline) > 1e-6:
        interval = stats.ttest_rel(ours, baseline).confidence_interval(0.95)
        assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


def test_one_seed_gives_no_interval() -> None:
    assert paired_difference([0.75], [0.5]) == {"mean": 0.25, "low": None, "high": None}


def test_the_result_does_not_depend_on_the_number_of_workers_and_is_not_made_twice(tmp_path: Path) -> None:
    folders = []
    for workers in (1, 2):
        done = compare(ARMS, seeds=2, out=tmp_path / str(workers), name="c", workers=workers, quiet=True, **QUICK)
        folders.append(done.folder)
    one, two = (comparison(folder) for folder in folders)
    assert stable(one) == stable(two)
    assert [arm["name"] for arm in one["arms"]] == ["plain", "smooth"]
    assert [len(arm["metrics"]["accuracy"]) for arm in one["arms"]] == [2, 2]
    assert one["reference"] == "plain"
    assert [(row["arm"], row["metric"]) for row in one["differences"]] == [
        ("smooth", metric) for metric in ("accuracy", "nll", "ece", "aurc")
    ]
    assert {row["metric"]: row["better"] for row in one["differences"]}.items() <= BETTER.items()
    for row in one["differences"]:
        arms = {arm["name"]: arm["metrics"][row["metric"]] for arm in one["arms"]}
        assert row["mean"] == pytest.approx(np.subtract(arms["smooth"], arms["plain"]).mean(), abs=1e-12)

    files = sorted(folders[0].glob("**/result.json"))
    written = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}
    assert len(files) == 4
    again = compare(ARMS, seeds=2, out=tmp_path / "1", name="c", quiet=True, **QUICK)
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files} == written
    # A third seed adds runs and leaves the others alone.
    more = compare(ARMS, seeds=3, out=tmp_path / "1", name="c", quiet=True, **QUICK)
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files} == written
    assert more.arms["plain"]["accuracy"][:2] == again.arms["plain"]["accuracy"]
    assert comparison(folders[0])["seeds"] == [0, 1, 2]


def test_words_follow_the_interval() -> None:
    from limbeck.verbs.compare import _in_words

    def said(low: float | None, high: float | None) -> str:
        mean = 0.02 if low is None or high is None else (low + high) / 2
        row = {"arm": "kd", "metric": "accuracy", "mean": mean, "low": low, "high": high}
        return _in_words([row], "supervised", 1 if low is None else 5)

    assert said(0.01, 0.03) == (
        "Over 5 seeds: kd: more accurate than supervised (+2.0 points, 95% interval +1.0 to +3.0)."
    )
    assert "less accurate than supervised (-2.0 points" in said(-0.03, -0.01)
    assert "no difference shown to supervised" in said(-0.01, 0.03)
    assert "no difference shown" in said(0.0, 0.0)
    assert said(None, None) == "Over 1 seed: kd: +2.0 points to supervised, which one seed cannot tell from chance."


def test_the_reference_is_supervised_where_there_is_one(tmp_path: Path) -> None:
    done = compare(["ps-kd", "supervised"], seeds=1, out=tmp_path, quiet=True, data="digits", **QUICK)
    assert comparison(done.folder)["reference"] == "supervised"
    assert done.folder == tmp_path / "compare-ps-kd-supervised"
    assert "which one seed cannot tell from chance" in done.finding
    assert done.differences[0]["low"] is None


@pytest.mark.parametrize(
    ("arms", "options", "said"),
    [
        (["supervised"], {}, "at least two different arms, there is supervised"),
        (["supervised", "supervised"], {}, "two arms are called 'supervised'"),
        (ARMS, {"seeds": 0}, "at least one seed"),
        (ARMS, {"seeds": [1, 1]}, r"each seed once, seeds is \[1, 1\]"),
        (ARMS, {"reference": "plane"}, "the reference 'plane' is none of the arms plain, smooth"),
        (ARMS, {"workers": 0}, "workers is 0; it must be at least 1"),
        ({"a/b": "supervised", "c": "kd"}, {}, "the arm 'a/b' needs a name without '/'"),
        ({"..": "supervised", "c": "kd"}, {}, r"the arm '\.\.' needs a name"),
        (ARMS, {"fit": {"epocs": 3}}, r"arm plain: unknown key 'fit\.epocs'\. Did you mean 'epochs'\?"),
        ({"a": "supervised", "b": {"method": "sup"}}, {}, "arm b: unknown method 'sup'"),
    ],
)
def test_what_cannot_be_compared(arms: Any, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        compare(arms, out=tmp_path, quiet=True, **({"student": QUICK["student"]} | options))


def test_modules_travel_to_workers_where_they_can(tmp_path: Path, digits: ImageData) -> None:
    torch.manual_seed(0)
    arms = {name: arm | {"student": Module(), "data": digits} for name, arm in ARMS.items()}
    fit = {"updates": 2}
    two = compare(arms, seeds=2, out=tmp_path / "two", workers=2, quiet=True, fit=fit)
    one = compare(arms, seeds=2, out=tmp_path / "one", quiet=True, fit=fit)
    assert set(two.arms) == {"plain", "smooth"}
    assert stable(comparison(one.folder)) == stable(comparison(two.folder)), "a run went on with another's weights"

    class Local(Module):
        """Of this test: no other process can import it."""

    with pytest.raises(LimbeckError, match=r"workers=2: an object of the recipe cannot be sent .*use workers=1"):
        compare(arms | {"other": arms["plain"] | {"student": Local()}}, out=tmp_path, workers=2, quiet=True, fit=fit)


def test_a_fault_in_a_worker_is_the_users_error(tmp_path: Path) -> None:
    recipe = {"method": "supervised", **QUICK, "data": {"name": "digits", "labels_per_class": 10_000}}
    jobs = [Job(recipe, seed, "x", f"seed {seed}") for seed in (0, 1)]
    with pytest.raises(LimbeckError, match=r"10,?000"):
        run_all(jobs, tmp_path, workers=2, quiet=True)


FILE = """
title: Does smoothing help?
seeds: 2
reference: plain
shared: {data: digits, student: {name: mlp, hidden: 8}, fit: {updates: 5}}
arms:
  plain: supervised
  smooth: {method: supervised, label_smoothing: 0.1, fit: {updates: 7}}
"""


def test_comparison_files() -> None:
    found = read_comparison(FILE, "mine.yaml")
    assert {key: found[key] for key in ("title", "seeds", "reference")} == {
        "title": "Does smoothing help?",
        "seeds": 2,
        "reference": "plain",
    }
    assert found["arms"]["plain"]["fit"] == {"updates": 5}
    assert found["arms"]["plain"]["method"] == "supervised"
    assert found["arms"]["smooth"]["fit"] == {"updates": 7}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: supervised", r"mine\.yaml is the recipe of one arm"),
        ("arm: {}", r"mine\.yaml: unknown key 'arm'\. Did you mean 'arms'\?"),
        ("arms: [kd]", "'arms' must be there, a mapping of names"),
        ("seeds: 3", "'arms' must be there"),
        ("arms: {a: 3}", r"arms\.a is 3; it must be a slug"),
        ("arms: {a: kd}\nshared: 3", "'shared' a mapping too"),
    ],
)
def test_mistakes_in_comparison_files(text: str, said: str) -> None:
    with pytest.raises(LimbeckError, match=said):
        read_comparison(text, "mine.yaml")
