"""``tune``: the same number of trials for every arm, on validation data, with seeds of their own."""

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limbeck.errors import LimbeckError, require
from limbeck.recipe import nest, overlay, resolve
from limbeck.signature import refuse_unknown
from limbeck.stages.files import write_json
from limbeck.verbs.on_ray import Engine, connected
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
    engine: Engine = "processes",
    workers: int = 1,
    address: str | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Tuned:
    """Search a method's settings on its validation data; the test data are not looked at.

    Args:
        method: a slug, a recipe file or a recipe.
        space: by dotted key a list of values, or ``{"low": ..., "high": ..., "log": true}`` (whole numbers where
            both ends and the present value are). Where all are lists, the points of their grid are tried, all of
            them or a random sample of ``trials``; else Optuna chooses.
        trials: number of settings tried.
        seeds: seeds of each trial, from 1000 on.
        metric: what is optimised on the validation data.
        better: its better direction.
        name: folder below ``out``.
        out: where run folders are made.
        engine: ``processes`` of this machine, or tasks of a Ray cluster (``ray``).
        workers: how many runs at once, one process and one core each.
        address: of a running Ray cluster, such as ``auto``; by default one is started for the call.
        quiet: show nothing.
        overrides: keys laid over the recipe.

    Raises:
        LimbeckError: an empty space or one that cannot be searched, a fault in a recipe, or a metric that is not
            measured.
    """
    if trials < 1 or seeds < 1:
        raise LimbeckError(f"trials is {trials} and seeds is {seeds}; both must be at least 1")
    if better not in ("higher", "lower"):
        raise LimbeckError(f"better is {better!r}; it must be higher or lower")
    base = prepare(method, **overrides)
    count = int(min(trials, points(space)))
    name = name or f"tune-{base['method']}"
    done: list[dict[str, Any]] = []
    search = _Grid(space, count) if points(space) < math.inf else _Continuous(space, base, better)
    with connected(engine, workers, address):
        while len(done) < count:
            chosen = search.ask(min(4, count - len(done)))
            jobs = [
                Job(
                    resolve(overlay(base, nest(values))),
                    FIRST_SEED + seed,
                    f"{name}/trial-{number}",
                    f"{name}, trial {number}, seed {FIRST_SEED + seed}",
                )
                for number, values in enumerate(chosen, len(done))
                for seed in range(seeds)
            ]
            results = run_all(jobs, out, engine=engine, workers=workers, address=address, quiet=quiet)
            measured = [_measured(result["metrics"], metric) for result in results]
            per_trial = [measured[start : start + seeds] for start in range(0, len(measured), seeds)]
            search.tell([statistics.fmean(values) for values in per_trial])
            done += [{"values": values, metric: found} for values, found in zip(chosen, per_trial, strict=True)]
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


def points(space: Mapping[str, Any]) -> float:
    """Number of settings in a space; infinite where a part of it is continuous.

    Raises:
        LimbeckError: the space is empty, or a part of it is neither a list of values nor a range.
    """
    if not space:
        raise LimbeckError("tune needs a space: by dotted key a list of values, or low, high and log")
    count = 1.0
    for key, values in space.items():
        if isinstance(values, Mapping):
            refuse_unknown(values, ("low", "high", "log"), f"the space of {key!r}: ")
            low, high = values.get("low", math.nan), values.get("high", math.nan)
            if not (_number(low) and _number(high) and (0 if values.get("log") else -math.inf) < low < high):
                raise LimbeckError(
                    f"the space of {key!r} is {dict(values)}; low and high must be numbers, low below high"
                    + (", and low above 0 where log is true" if values.get("log") else "")
                )
            count = math.inf
        elif isinstance(values, Sequence) and not isinstance(values, str) and values:
            count *= len(values)
        else:
            raise LimbeckError(f"the space of {key!r} is {values!r}; give a list of values, or low, high and log")
    return count


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class _Grid:
    """Points of a grid, each at most once: all of them, or a sample that is the same every time."""

    def __init__(self, space: Mapping[str, Sequence[Any]], count: int) -> None:
        total = int(points(space))
        self.space = space
        self.rest = list(range(total)) if count == total else random.Random(0).sample(range(total), count)

    def ask(self, count: int) -> list[dict[str, Any]]:
        numbers, self.rest = self.rest[:count], self.rest[count:]
        return [self._point(number) for number in numbers]

    def tell(self, values: Sequence[float]) -> None:
        """What came out changes nothing."""

    def _point(self, number: int) -> dict[str, Any]:
        point = {}
        for key, values in self.space.items():
            number, place = divmod(number, len(values))
            point[key] = values[place]
        return point


class _Continuous:
    """Optuna's tree-structured Parzen estimator."""

    def __init__(self, space: Mapping[str, Any], base: Mapping[str, Any], better: str) -> None:
        optuna = require("optuna", extra="tune")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=0), direction="maximize" if better == "higher" else "minimize"
        )
        self.space = space
        self.base = base
        self.asked: list[Any] = []

    def ask(self, count: int) -> list[dict[str, Any]]:
        self.asked = [self.study.ask() for _ in range(count)]
        return [{key: self._suggest(trial, key, values) for key, values in self.space.items()} for trial in self.asked]

    def tell(self, values: Sequence[float]) -> None:
        for trial, value in zip(self.asked, values, strict=True):
            self.study.tell(trial, value)

    def _suggest(self, trial: Any, key: str, values: Any) -> Any:
        if not isinstance(values, Mapping):
            # By number: Optuna takes no lists or mappings as choices.
            return values[trial.suggest_int(key, 0, len(values) - 1)]
        low, high, log = values["low"], values["high"], bool(values.get("log", False))
        whole = isinstance(low, int) and isinstance(high, int) and isinstance(_at(self.base, key), int | None)
        return (trial.suggest_int if whole else trial.suggest_float)(key, low, high, log=log)


def _at(recipe: Any, key: str) -> Any:
    """The value at a dotted key, or None."""
    for part in key.split("."):
        recipe = recipe.get(part) if isinstance(recipe, Mapping) else None
    return recipe


def _measured(metrics: Mapping[str, float], metric: str) -> float:
    name = f"validation/{metric}"
    if name not in metrics:
        there = sorted(key.removeprefix("validation/") for key in metrics if key.startswith("validation/"))
        raise LimbeckError(f"there is no validation metric {metric!r}; there are: {', '.join(there) or 'none'}")
    return metrics[name]
