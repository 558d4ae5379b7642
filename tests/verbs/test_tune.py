"""The verb tune: equal trials, validation data only, seeds of its own."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.verbs import verify
from limbeck.verbs.tune import FIRST_SEED, tune

RECIPE: dict[str, Any] = {
    "method": "supervised",
    "data": "digits",
    "student": {"name": "mlp", "hidden": 8},
    "fit": {"updates": 8, "batch_size": 32},
}
LR = "fit.optimizer.lr"


def test_a_grid_is_searched_in_full_with_seeds_of_its_own(tmp_path: Path) -> None:
    space = {LR: [0.001, 0.1], "label_smoothing": [0.0, 0.3]}
    done = tune(RECIPE, space, trials=9, seeds=2, metric="nll", better="lower", out=tmp_path, quiet=True)
    tried = [tuple(trial["values"][key] for key in space) for trial in done.trials]
    assert sorted(tried) == [(0.001, 0.0), (0.001, 0.3), (0.1, 0.0), (0.1, 0.3)]
    assert all(len(trial["nll"]) == 2 for trial in done.trials)
    best = min(done.trials, key=lambda trial: sum(trial["nll"]))
    assert done.overrides == best["values"]
    assert done.value == pytest.approx(sum(best["nll"]) / 2)
    seeds = {folder.name for folder in tmp_path.glob("tune-supervised/trial-*/seed-*")}
    assert seeds == {"seed-1000", "seed-1001"}
    assert json.loads((done.folder / "tuning.json").read_text()) == {
        "method": "supervised",
        "metric": "nll",
        "better": "lower",
        "best": done.overrides,
        "trials": done.trials,
    }
    for number, trial in enumerate(done.trials):
        for seed, value in zip((1000, 1001), trial["nll"], strict=True):
            file = done.folder / f"trial-{number}" / f"seed-{seed}" / "fit" / "result.json"
            assert json.loads(file.read_text())["metrics"]["validation/nll"] == value


def test_trials_are_a_sample_of_a_larger_grid_the_same_every_time(tmp_path: Path) -> None:
    space = {LR: [0.001, 0.01, 0.1], "label_smoothing": [0.0, 0.1, 0.3]}
    found = [tune(RECIPE, space, trials=5, seeds=1, out=tmp_path / again, quiet=True) for again in "ab"]
    assert found[0].trials == found[1].trials
    tried = [tuple(trial["values"].values()) for trial in found[0].trials]
    assert len(tried) == len(set(tried)) == 5


def test_fresh_seeds_are_no_seeds_of_trials() -> None:
    most = 500
    assert not {verify.FIRST_SEED + n for n in range(most)} & {FIRST_SEED + n for n in range(most)}


def test_the_test_labels_do_not_change_the_choice(tmp_path: Path, digits: ImageData) -> None:
    shuffled = digits.test.labels[torch.randperm(len(digits.test), generator=torch.Generator().manual_seed(0))]
    test = digits.test.subset(range(len(digits.test)))
    test.labels = shuffled
    other = dataclasses.replace(digits, test=test)
    assert not torch.equal(other.test.labels, digits.test.labels)
    first, second = (
        tune(RECIPE | {"data": data}, {LR: [0.001, 0.3]}, seeds=1, out=tmp_path / name, quiet=True)
        for name, data in (("a", digits), ("b", other))
    )
    assert first.overrides == second.overrides
    assert first.trials == second.trials
    result = "tune-supervised/trial-0/seed-1000/fit/result.json"
    accuracies = [json.loads((tmp_path / name / result).read_text())["metrics"]["accuracy"] for name in "ab"]
    assert accuracies[0] != accuracies[1], "the labels were not shuffled"


def test_continuous_spaces(tmp_path: Path) -> None:
    space = {
        LR: {"low": 1e-3, "high": 1e-1, "log": True},
        "student.hidden": {"low": 2, "high": 9},
        "label_smoothing": {"low": 0, "high": 1},
        "fit.schedule": ["cosine", {"name": "constant", "warmup": 0.1}],
    }
    done = tune(RECIPE, space, trials=5, seeds=1, out=tmp_path, quiet=True)
    assert len(done.trials) == 5
    for trial in done.trials:
        chosen = trial["values"]
        assert 1e-3 <= chosen[LR] <= 1e-1
        assert chosen["student.hidden"] in range(2, 10)
        # The ends are whole numbers, but what is there now is not.
        assert isinstance(chosen["label_smoothing"], float)
        assert chosen["fit.schedule"] in space["fit.schedule"]
    again = tune(RECIPE, space, trials=5, seeds=1, out=tmp_path, quiet=True)
    assert again.trials == done.trials


@pytest.mark.parametrize(
    ("space", "options", "said"),
    [
        ({}, {}, "tune needs a space"),
        ({LR: []}, {}, rf"the space of '{LR}' is \[\]; give a list"),
        ({LR: 0.1}, {}, "is 0.1; give a list of values, or low, high and log"),
        ({LR: "0.1"}, {}, "is '0.1'; give a list"),
        ({LR: {"low": 0.1}}, {}, "low and high must be numbers, low below high"),
        ({LR: {"low": 0.2, "high": 0.1}}, {}, "low below high"),
        ({LR: {"low": 0, "high": 0.1, "log": True}}, {}, "and low above 0 where log is true"),
        ({LR: {"low": 0.1, "hihg": 1}}, {}, r"hihg'\. Did you mean 'high'\?"),
        ({"fit.optimizer.lrr": [0.1]}, {}, r"unknown key 'fit\.optimizer\.lrr'\. Did you mean 'lr'\?"),
        ({LR: [0.1, "x"]}, {}, r"fit\.optimizer\.lr is 'x'; it must be float"),
        ({LR: [0.1]}, {"trials": 0}, "trials is 0 and seeds is 1; both must be at least 1"),
        ({LR: [0.1]}, {"seeds": 0}, "seeds is 0; both must be at least 1"),
        ({LR: [0.1]}, {"better": "more"}, "better is 'more'; it must be higher or lower"),
        ({LR: [0.1]}, {"metric": "acuracy"}, "there is no validation metric 'acuracy'.*there are: accuracy"),
    ],
)
def test_what_cannot_be_searched(space: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        tune(RECIPE, space, out=tmp_path, quiet=True, **({"seeds": 1} | options))
