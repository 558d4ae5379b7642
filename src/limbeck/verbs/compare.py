"""``compare``: several arms, the same seeds, paired differences with their intervals."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.metrics.directions import BETTER
from limbeck.metrics.intervals import student_interval
from limbeck.recipe import Recipe, overlay, read_yaml
from limbeck.signature import refuse_unknown
from limbeck.stages.files import locked, write_json
from limbeck.stages.stage import FORMAT_VERSION, versions
from limbeck.verbs.on_ray import Engine
from limbeck.verbs.run import default_name, plain, prepare
from limbeck.verbs.runs import Job, run_all


@dataclass(frozen=True)
class Comparison:
    """What a comparison gave.

    Attributes:
        folder: holds ``comparison.json`` and a run folder for each arm.
        arms: metrics by arm, one value a seed.
        differences: paired differences of every arm to the reference.
        finding: what came out, in words.
    """

    folder: Path
    arms: dict[str, dict[str, list[float]]]
    differences: list[dict[str, Any]]
    finding: str


def compare(
    arms: Mapping[str, Any] | Sequence[Any],
    *,
    seeds: int | Sequence[int] = 3,
    reference: str | None = None,
    title: str | None = None,
    name: str | None = None,
    out: str | Path = "runs",
    engine: Engine = "processes",
    workers: int = 1,
    address: str | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Comparison:
    """Train every arm with every seed and compare them pairwise, seed by seed.

    Args:
        arms: slugs, recipe files or recipes; a mapping gives them names.
        seeds: how many seeds (from 0), or which.
        reference: the arm that the others are compared with; by default ``supervised`` where there is one, else
            the first.
        title: heading of the report.
        name: folder below ``out``.
        out: where run folders are made.
        engine: ``processes`` of this machine, or tasks of a Ray cluster (``ray``).
        workers: how many runs at once, one process and one core each.
        address: of a running Ray cluster, such as ``auto``; by default one is started for the call.
        quiet: show nothing.
        overrides: keys laid over every arm's recipe, such as ``data="digits"``.

    Raises:
        LimbeckError: fewer than two arms, two arms of one name, a fault in a recipe or in a run.
    """
    recipes = named_arms(arms, overrides)
    if len(recipes) < 2:
        raise LimbeckError(f"a comparison needs at least two different arms, there is {', '.join(recipes) or 'none'}")
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen or len({*chosen}) < len(chosen):
        raise LimbeckError(f"a comparison needs at least one seed and each seed once, seeds is {seeds}")
    reference = reference or ("supervised" if "supervised" in recipes else next(iter(recipes)))
    if reference not in recipes:
        raise LimbeckError(f"the reference {reference!r} is none of the arms {', '.join(recipes)}")
    name = name or f"compare-{'-'.join(recipes)}"[:60]
    folder = Path(out) / name
    with locked(folder):
        jobs = [
            Job(recipe, seed, f"{name}/{arm}", f"{arm}, seed {seed}")
            for seed in chosen
            for arm, recipe in recipes.items()
        ]
        results = run_all(jobs, out, engine=engine, workers=workers, address=address, quiet=quiet)
        by_arm = {
            arm: [r for job, r in zip(jobs, results, strict=True) if job.name == f"{name}/{arm}"] for arm in recipes
        }
        metrics = {arm: _by_metric([r["metrics"] for r in results]) for arm, results in by_arm.items()}
        differences = [
            {"arm": arm, "baseline": reference, "metric": metric, "better": better, "seeds": len(chosen)}
            | paired_difference(metrics[arm][metric], metrics[reference][metric])
            for arm in recipes
            if arm != reference
            for metric, better in BETTER.items()
            if all(metric in values for values in metrics.values())
        ]
        finding = _in_words(differences, reference, len(chosen))
        write_json(
            folder / "comparison.json",
            {
                "format_version": FORMAT_VERSION,
                "title": title or "Comparison of " + ", ".join(recipes),
                "reference": reference,
                "seeds": chosen,
                "arms": [
                    {
                        "name": arm,
                        "method": recipes[arm]["method"],
                        "folder": arm,
                        "recipe": plain(recipes[arm]),
                        "metrics": {k: v for k, v in metrics[arm].items() if not k.startswith("teacher/")},
                        "teacher": {k[8:]: v for k, v in metrics[arm].items() if k.startswith("teacher/")} or None,
                        "seconds": [r["seconds"] for r in by_arm[arm]],
                    }
                    for arm in recipes
                ],
                "differences": differences,
                "finding": finding,
                "versions": versions(),
            },
        )
    return Comparison(folder, metrics, differences, finding)


def read_comparison(text: str, name: str) -> dict[str, Any]:
    """The arguments of :func:`compare` from a comparison file.

    The file holds ``arms`` (recipes by name), and may hold ``shared`` (keys that every arm gets unless it sets
    them itself), ``seeds``, ``reference`` and ``title``.

    Args:
        text: YAML.
        name: the file's name, for messages.

    Raises:
        LimbeckError: not such a file.
    """
    file = read_yaml(text, name)
    if "arms" not in file and "method" in file:
        raise LimbeckError(f"{name} is the recipe of one arm; a comparison needs two: give both files, or 'arms:'")
    refuse_unknown(file, ("arms", "shared", "seeds", "reference", "title"), f"{name}: ")
    shared, arms = file.get("shared", {}), file.get("arms")
    if not isinstance(arms, Mapping) or not isinstance(shared, Mapping):
        raise LimbeckError(f"{name}: 'arms' must be there, a mapping of names to recipes, and 'shared' a mapping too")
    for arm, recipe in arms.items():
        if not isinstance(recipe, str | Mapping):
            raise LimbeckError(f"{name}: arms.{arm} is {recipe!r}; it must be a slug, or a mapping with 'method: SLUG'")
    recipes = {
        str(arm): overlay(shared, {"method": recipe} if isinstance(recipe, str) else recipe)
        for arm, recipe in arms.items()
    }
    return {"arms": recipes} | {key: file[key] for key in ("seeds", "reference", "title") if key in file}


def named_arms(arms: Mapping[str, Any] | Sequence[Any], overrides: Mapping[str, Any]) -> dict[str, Recipe]:
    """Resolved recipes by arm.

    Raises:
        LimbeckError: two arms of one name, a name that cannot be a folder, or a fault in a recipe.
    """
    named = list(arms.items()) if isinstance(arms, Mapping) else [(None, arm) for arm in arms]
    recipes: dict[str, Recipe] = {}
    for given, arm in named:
        resolved = _prepared(given or arm, arm, overrides)
        name = given or (arm if isinstance(arm, str) and "/" not in arm else default_name(resolved))
        if name in recipes:
            raise LimbeckError(f"two arms are called {name!r}; name them: NAME={name} or {{'NAME': {name!r}}}")
        if "/" in name or name.startswith("."):
            raise LimbeckError(f"the arm {name!r} needs a name without '/' that begins with no dot: it names a folder")
        recipes[name] = resolved
    return recipes


def _prepared(name: Any, arm: Any, overrides: Mapping[str, Any]) -> Recipe:
    try:
        return prepare(arm, **overrides)
    except LimbeckError as error:
        if isinstance(name, str):
            error.args = (f"arm {name}: {error}",)
        raise


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> dict[str, float | None]:
    """Mean of ``values - baseline`` over seeds and its 95% interval (Student's t, n - 1 degrees of freedom).

    ``low`` and ``high`` are None with fewer than two seeds: one pair says nothing about spread.
    """
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    low, high = student_interval(differences) or (None, None)
    return {"mean": statistics.fmean(differences), "low": low, "high": high}


def _by_metric(results: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Metrics that every seed has, one value a seed."""
    shared = [name for name in results[0] if all(name in result for result in results)]
    return {name: [result[name] for result in results] for name in shared}


def _in_words(differences: Sequence[Mapping[str, Any]], reference: str, seeds: int) -> str:
    if not differences:
        return "The arms share no metric whose better direction is known."
    first = differences[0]["metric"]
    better, worse, factor, unit = f"higher {first} than", f"lower {first} than", 1.0, ""
    if first == "accuracy":
        better, worse, factor, unit = "more accurate than", "less accurate than", 100.0, " points"
    digits = 1 if unit else 4
    sentences = []
    for row in differences:
        if row["metric"] != first:
            continue
        difference = f"{factor * row['mean']:+.{digits}f}{unit}"
        if row["low"] is None:
            sentences.append(f"{row['arm']}: {difference} to {reference}, which one seed cannot tell from chance")
            continue
        low, high = factor * row["low"], factor * row["high"]
        interval = f"95% interval {low:+.{digits}f} to {high:+.{digits}f}"
        if low > 0:
            verdict = better
        elif high < 0:
            verdict = worse
        else:
            verdict = "no difference shown to"
        sentences.append(f"{row['arm']}: {verdict} {reference} ({difference}, {interval})")
    return f"Over {seeds} seed{'s' if seeds > 1 else ''}: " + "; ".join(sentences) + "."
