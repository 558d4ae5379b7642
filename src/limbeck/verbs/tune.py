"""``tune``: the same number of trials for every arm, on validation data, with seeds of their own."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limbeck.errors import LimbeckError, require
from limbeck.recipe import nest, overlay, resolve
from limbeck.stages.files import write_json
from limbeck.verbs.run import prepare
from limbeck.verbs.runs import Job, run_all

FIRST_SEED = 1000
"""Seeds of trials start here: no seed that tunes is used to measure."""


@dataclass(frozen=True)
class Tuned:
    """What tuning chose.

    Attributes:
        overrides: the chosen values by dotted key.
        value: mean of the validation metric over the trials' seeds.
        trials: every trial: its values by key, and the metric for each seed.
        folder: holds ``tuning.json`` and the trials' run folders.
    """

    overrides: dict[str, Any]
    value: float
    trials: list[dict[str, Any]]
    folder: Path


def tune(
    method: str | Path | Mapping[str, Any],
    space: Mapping[str, Any],
    *,
    trials: int = 8,
    seeds: int = 2,
    metric: str = "accuracy",
    better: Literal["higher", "lower"] = "higher",
    name: str | None = None,
    out: str | Path = "runs",
    workers: int = 1,
    quiet: bool = False,
    **overrides: Any,
) -> Tuned:
    """Search a method's settings on its validation data; the test data are not looked at.

    Args:
        method: a slug, a recipe file or a recipe.
        space: by dotted key a list of values, or ``{"low": ..., "high": ..., "log": true}``. Where all are lists
            and their grid has no more than ``trials`` points, the grid is searched in full.
        trials: number of settings tried.
        seeds: seeds of each trial, from 1000 on.
        metric: what is optimised on the validation data.
        better: its better direction.
        name: folder below ``out``.
        out: where run folders are made.
        workers: processes that train side by side.
        quiet: show nothing.
        overrides: keys laid over the recipe.

    Raises:
        LimbeckError: an empty space, a fault in a recipe, or a metric that is not measured.
    """
    optuna = require("optuna", extra="tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    base = prepare(method, **overrides)
    if not space:
        raise LimbeckError("tune needs a space: by dotted key a list of values or {low, high, log}")
    grid = all(isinstance(values, Sequence) for values in space.values())
    points = math.prod(len(values) for values in space.values()) if grid else math.inf
    sampler = (
        optuna.samplers.GridSampler({key: list(values) for key, values in space.items()}, seed=0)
        if points <= trials
        else optuna.samplers.TPESampler(seed=0)
    )
    study = optuna.create_study(sampler=sampler, direction="maximize" if better == "higher" else "minimize")
    name = name or f"tune-{base['method']}"
    done: list[dict[str, Any]] = []
    count = int(min(trials, points))
    while len(done) < count:
        asked = [study.ask() for _ in range(min(4, count - len(done)))]
        chosen = [{key: _suggest(trial, key, values) for key, values in space.items()} for trial in asked]
        jobs = [
            Job(
                resolve(overlay(base, nest(values))),
                FIRST_SEED + seed,
                f"{name}/trial-{trial.number}",
                f"{name}, trial {trial.number}, seed {FIRST_SEED + seed}",
            )
            for trial, values in zip(asked, chosen, strict=True)
            for seed in range(seeds)
        ]
        results = run_all(jobs, out, workers=workers, quiet=quiet)
        for number, (trial, values) in enumerate(zip(asked, chosen, strict=True)):
            measured = [_measured(r["metrics"], metric) for r in results[number * seeds : (number + 1) * seeds]]
            study.tell(trial, statistics.fmean(measured))
            done.append({"values": values, metric: measured})
    best = (max if better == "higher" else min)(done, key=lambda trial: statistics.fmean(trial[metric]))
    folder = Path(out) / name
    tuned = Tuned(best["values"], statistics.fmean(best[metric]), done, folder)
    write_json(
        folder / "tuning.json",
        {
            "method": base["method"],
            "metric": metric,
            "better": better,
            "best": best["values"],
            "trials": done,
        },
    )
    return tuned


def _suggest(trial: Any, key: str, values: Any) -> Any:
    if isinstance(values, Sequence) and not isinstance(values, str):
        return trial.suggest_categorical(key, list(values))
    if isinstance(values, Mapping) and {"low", "high"} <= set(values):
        return trial.suggest_float(key, values["low"], values["high"], log=bool(values.get("log", False)))
    raise LimbeckError(f"the space of {key!r} is {values!r}; give a list of values, or low, high and log")


def _measured(metrics: Mapping[str, float], metric: str) -> float:
    name = f"validation/{metric}"
    if name not in metrics:
        there = sorted(key.removeprefix("validation/") for key in metrics if key.startswith("validation/"))
        raise LimbeckError(f"there is no validation metric {metric!r}; there are: {', '.join(there) or 'none'}")
    return metrics[name]
