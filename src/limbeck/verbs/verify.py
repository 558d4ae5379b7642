"""``verify``: measure what a method claims, against tuned baselines at equal budget, over fresh seeds."""

import statistics
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from limbeck.catalogue import evidence_file, explained, sources
from limbeck.errors import LimbeckError, nearest
from limbeck.methods.index import METHODS
from limbeck.metrics.directions import BETTER
from limbeck.recipe import nest, overlay, read_yaml, resolve
from limbeck.signature import refuse_unknown
from limbeck.stages.files import write_json
from limbeck.stages.stage import FORMAT_VERSION, versions
from limbeck.verbs.compare import paired_difference
from limbeck.verbs.on_ray import Engine, connected
from limbeck.verbs.run import plain, prepare
from limbeck.verbs.runs import Job, run_all
from limbeck.verbs.tune import points, tune

KINDS = ("superior", "noninferior", "report")
REQUIRED = ("claims", "arms", "tuning", "budget")
OPTIONAL = ("shared", "seeds")
ROW = (
    *("text", "primary", "kind", "margin", "metric", "better", "arm", "baseline"),
    *("baseline_metric", "baseline_factor", "every_seed"),
)
FIRST_SEED = 100
"""Fresh seeds start here: none of them was used to develop or to tune."""


def read_claim(slug: str) -> dict[str, Any]:
    """The committed claim of a method.

    Raises:
        LimbeckError: unknown slug, no claim, or a claim that is not well formed.
    """
    if slug not in METHODS:
        raise LimbeckError(f"unknown method {slug!r}.{nearest(slug, METHODS)} Known: {', '.join(METHODS)}")
    file = resources.files("limbeck") / "recipes" / slug / "claim.yaml"
    if not file.is_file():
        raise LimbeckError(f"{slug} claims nothing: there is no recipes/{slug}/claim.yaml")
    return parse_claim(file.read_text(encoding="utf-8"), slug)


def parse_claim(text: str, slug: str) -> dict[str, Any]:
    """A claim from its YAML.

    Raises:
        LimbeckError: it is not well formed.
    """
    name = f"recipes/{slug}/claim.yaml"
    claim = read_yaml(text, name)
    refuse_unknown(claim, (*REQUIRED, *OPTIONAL), f"{name}: ")
    _need(claim, REQUIRED, name)
    tuning = claim["tuning"]
    _need(tuning, ("space", "trials", "seeds", "metric", "better"), f"{name}: tuning")
    if not claim["claims"] or not claim["claims"][0].get("primary"):
        raise LimbeckError(f"{name}: the first claim must be the primary one (primary: true)")
    for row in claim["claims"]:
        _check_row(row, slug, claim["arms"], name)
    for arm in claim["arms"]:
        if "/" in arm or arm == "tune":
            raise LimbeckError(f"{name}: an arm cannot be called {arm!r}: it names a folder beside that of the tuning")
        there = points(arm_space(tuning, arm))
        if there < tuning["trials"]:
            raise LimbeckError(
                f"{name}: the space of {arm} has {there:.0f} points and tuning.trials is {tuning['trials']}; every arm "
                "gets the same number of trials"
            )
    refuse_unknown(tuning.get("arms", {}), claim["arms"], f"{name}: tuning.arms: ")
    return claim


def _check_row(row: Mapping[str, Any], slug: str, arms: Mapping[str, Any], name: str) -> None:
    refuse_unknown(row, ROW, f"{name}: claim {row.get('text')!r}: ")
    _need(row, ("text", "kind", "metric", "better", "baseline"), f"{name}: a claim")
    text = f"{name}: claim {row['text']!r}"
    if row["kind"] not in KINDS:
        raise LimbeckError(
            f"{text} is {row['kind']!r}.{nearest(str(row['kind']), KINDS)} It must be {' or '.join(KINDS)}"
        )
    if row["better"] not in ("higher", "lower"):
        raise LimbeckError(f"{text}: better is {row['better']!r}; it must be higher or lower")
    margin = row.get("margin")
    if row["kind"] == "noninferior" and not (isinstance(margin, int | float) and margin >= 0):
        raise LimbeckError(f"{text} is noninferior and needs a margin, a number from 0 on")
    if row["kind"] != "noninferior" and margin is not None:
        raise LimbeckError(f"{text} is {row['kind']} and takes no margin")
    for arm in (row.get("arm", slug), row["baseline"]):
        if arm not in arms:
            raise LimbeckError(f"{text} names the arm {arm!r}.{nearest(str(arm), arms)} Arms: {', '.join(arms)}")


def _need(block: Any, keys: Sequence[str], where: str) -> None:
    if not isinstance(block, Mapping):
        raise LimbeckError(f"{where} must be a mapping with {', '.join(keys)}; it is {block!r}")
    for key in keys:
        if key not in block:
            raise LimbeckError(f"{where} lacks {key!r}")


def arm_space(tuning: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """The space that an arm is tuned in: the shared one and its own."""
    return {**tuning["space"], **tuning.get("arms", {}).get(arm, {})}


def verify(
    slug: str,
    *,
    out: str | Path = "runs",
    evidence: str | Path | None = None,
    engine: Engine = "processes",
    workers: int = 1,
    address: str | None = None,
    seeds: int | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Tune every arm of a method's claim, run it over fresh seeds and write the evidence, whatever it is.

    Args:
        slug: the method.
        out: where run folders are made; what is finished there is not repeated.
        evidence: file to write; by default ``evidence/SLUG.json`` of the package.
        engine: ``processes`` of this machine, or tasks of a Ray cluster (``ray``).
        workers: how many runs at once, one process and one core each.
        address: of a running Ray cluster, such as ``auto``; by default one is started for the call.
        seeds: number of fresh seeds; the claim's own by default. Fewer than 5 are refused for the package's file.
        quiet: show nothing.
        overrides: keys laid over every arm, for a trial of another regime.

    Returns:
        The evidence.

    Raises:
        LimbeckError: no claim, or a fault in it or in a run.
    """
    claim = read_claim(slug)
    count = int(claim.get("seeds", 5)) if seeds is None else seeds
    if count < 1:
        raise LimbeckError(f"seeds is {count}; it must be at least 1")
    if evidence is None:
        if count < 5 or overrides:
            raise LimbeckError("the package's evidence needs 5 seeds and the claim as it is; give --evidence FILE")
        evidence = evidence_file(slug)
    begin = time.perf_counter()
    shared = overlay(claim.get("shared", {}), nest(overrides))
    arms = {name: overlay(shared, arm) for name, arm in claim["arms"].items()}
    tuning = claim["tuning"]
    with connected(engine, workers, address):
        tuned = {
            name: tune(
                prepare(arm),
                arm_space(tuning, name),
                trials=tuning["trials"],
                seeds=tuning["seeds"],
                metric=tuning["metric"],
                better=tuning["better"],
                name=f"verify-{slug}/tune/{name}",
                out=out,
                engine=engine,
                workers=workers,
                address=address,
                quiet=quiet,
            )
            for name, arm in arms.items()
        }
        final = {name: resolve(overlay(prepare(arm), nest(tuned[name].overrides))) for name, arm in arms.items()}
        fresh = [FIRST_SEED + number for number in range(count)]
        jobs = [
            Job(recipe, seed, f"verify-{slug}/{name}", f"{name}, seed {seed}")
            for seed in fresh
            for name, recipe in final.items()
        ]
        results = run_all(jobs, out, engine=engine, workers=workers, address=address, quiet=quiet)
    by_arm = {
        name: [r for job, r in zip(jobs, results, strict=True) if job.name == f"verify-{slug}/{name}"] for name in final
    }
    measured = {
        "format_version": FORMAT_VERSION,
        "slug": slug,
        "claims": [judge(row, slug, by_arm, fresh) for row in claim["claims"]],
        "tuning": {
            "trials": tuning["trials"],
            "seeds": tuning["seeds"],
            "metric": f"validation {tuning['metric']}",
            "space": tuning["space"]
            | {f"{k} ({arm})": v for arm, s in tuning.get("arms", {}).items() for k, v in s.items()},
            "chosen": {name: found.overrides for name, found in tuned.items()},
        },
        "budget": {
            **claim["budget"],
            "arms": {
                name: {"updates": rows[0]["updates"], "samples_seen": rows[0]["samples_seen"]}
                for name, rows in by_arm.items()
            },
        },
        "regimes_tried": [],
        "arms": {name: _summary(rows) for name, rows in by_arm.items()},
        "recipes": {name: plain(recipe) for name, recipe in final.items()},
        "sources": sources(slug),
        "versions": versions(),
        "seconds": {
            **{name: round(statistics.fmean(row["seconds"] for row in rows), 2) for name, rows in by_arm.items()},
            "total": round(time.perf_counter() - begin, 1),
        },
    }
    measured = explained(slug, measured)
    write_json(Path(evidence), measured)
    return measured


def judge(
    row: Mapping[str, Any], slug: str, by_arm: Mapping[str, Sequence[Mapping[str, Any]]], seeds: Sequence[int]
) -> dict[str, Any]:
    """One claim beside what was measured.

    ``superior`` holds when the 95% interval of the paired difference lies on the better side of 0,
    ``noninferior`` when it lies on the better side of -margin, ``report`` always. Two refinements: with
    ``baseline_factor`` the baseline is multiplied by it first (0.85: at least 15% lower), and with
    ``every_seed`` each seed's difference must lie on the better side too.
    """
    metric = row["metric"]
    factor = float(row.get("baseline_factor", 1.0))
    method = _values(by_arm[row.get("arm", slug)], metric, row["text"])
    baseline = [factor * v for v in _values(by_arm[row["baseline"]], row.get("baseline_metric", metric), row["text"])]
    difference = paired_difference(method, baseline)
    sign = 1.0 if row["better"] == "higher" else -1.0
    low, high = difference["low"], difference["high"]
    worst = None if low is None or high is None else min(sign * low, sign * high)
    margin = row.get("margin")
    least = 0.0 if margin is None else -float(margin)
    holds = worst is not None and worst > least
    if row.get("every_seed"):
        holds = holds and all(sign * (a - b) > least for a, b in zip(method, baseline, strict=True))
    return {
        "text": row["text"],
        "primary": bool(row.get("primary", False)),
        "kind": row["kind"],
        "margin": margin,
        "metric": metric,
        "better": row["better"],
        "arm": row.get("arm", slug),
        "baseline_name": row["baseline"],
        "baseline_metric": row.get("baseline_metric", metric),
        "baseline_factor": factor,
        "every_seed": bool(row.get("every_seed", False)),
        "seeds": list(seeds),
        "method": method,
        "baseline": baseline,
        "difference": difference,
        "holds": holds or row["kind"] == "report",
    }


def _values(results: Sequence[Mapping[str, Any]], metric: str, text: str) -> list[float]:
    for result in results:
        if metric not in result["metrics"]:
            known = ", ".join(result["metrics"])
            hint = nearest(metric, result["metrics"])
            raise LimbeckError(f"claim {text!r}: {metric!r} is not measured.{hint} Measured: {known}")
    return [float(result["metrics"][metric]) for result in results]


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    names = (*BETTER, "scaled/nll", "scaled/ece", *(f"teacher/{name}" for name in BETTER))
    return {name: [row["metrics"][name] for row in rows] for name in names if all(name in r["metrics"] for r in rows)}
