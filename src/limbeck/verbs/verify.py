"""``verify``: measure what a method claims, against tuned baselines at equal budget, over fresh seeds."""

import statistics
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from limbeck.catalogue import sources
from limbeck.errors import LimbeckError, nearest
from limbeck.methods.index import METHODS
from limbeck.recipe import nest, overlay, read_yaml, resolve
from limbeck.stages.files import write_json
from limbeck.stages.stage import FORMAT_VERSION, versions
from limbeck.verbs.compare import paired_difference
from limbeck.verbs.run import plain, prepare
from limbeck.verbs.runs import Job, run_all
from limbeck.verbs.tune import tune

KINDS = ("superior", "noninferior", "report")
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
    claim = read_yaml(file.read_text(encoding="utf-8"), f"{slug}/claim.yaml")
    for key in ("claims", "arms", "tuning", "budget"):
        if key not in claim:
            raise LimbeckError(f"recipes/{slug}/claim.yaml lacks {key!r}")
    for row in claim["claims"]:
        if row["kind"] not in KINDS:
            raise LimbeckError(f"claim {row['text']!r} is {row['kind']!r}; it must be one of {', '.join(KINDS)}")
        if row["kind"] == "noninferior" and "margin" not in row:
            raise LimbeckError(f"claim {row['text']!r} is noninferior and needs a margin")
        for arm in (row.get("arm", slug), row["baseline"]):
            if arm not in claim["arms"]:
                raise LimbeckError(f"claim {row['text']!r} names the arm {arm!r}; arms: {', '.join(claim['arms'])}")
    if not claim["claims"][0].get("primary"):
        raise LimbeckError(f"recipes/{slug}/claim.yaml: the first claim must be the primary one")
    return claim


def verify(
    slug: str,
    *,
    out: str | Path = "runs",
    evidence: str | Path | None = None,
    workers: int = 1,
    seeds: int | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Tune every arm of a method's claim, run it over fresh seeds and write the evidence, whatever it is.

    Args:
        slug: the method.
        out: where run folders are made; what is finished there is not repeated.
        evidence: file to write; by default ``evidence/SLUG.json`` of the package.
        workers: processes that train side by side.
        seeds: number of fresh seeds; the claim's own by default. Fewer than 5 are refused for the package's file.
        quiet: show nothing.
        overrides: keys laid over every arm, for a trial of another regime.

    Returns:
        The evidence.

    Raises:
        LimbeckError: no claim, or a fault in it or in a run.
    """
    claim = read_claim(slug)
    count = seeds or int(claim.get("seeds", 5))
    if evidence is None:
        if count < 5 or overrides:
            raise LimbeckError("the package's evidence needs 5 seeds and the claim as it is; give --evidence FILE")
        evidence = Path(str(resources.files("limbeck") / "evidence" / f"{slug}.json"))
    begin = time.perf_counter()
    shared = overlay(claim.get("shared", {}), nest(overrides))
    arms = {name: overlay(shared, arm) for name, arm in claim["arms"].items()}
    tuning = claim["tuning"]
    tuned = {
        name: tune(
            prepare(arm),
            {**tuning["space"], **tuning.get("arms", {}).get(name, {})},
            trials=tuning["trials"],
            seeds=tuning["seeds"],
            metric=tuning["metric"],
            better=tuning["better"],
            name=f"verify-{slug}/tune/{name}",
            out=out,
            workers=workers,
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
    results = run_all(jobs, out, workers=workers, quiet=quiet)
    by_arm = {
        name: [r for job, r in zip(jobs, results, strict=True) if job.name.endswith("/" + name)] for name in final
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
        "regimes_tried": claim.get("regimes_tried", []),
        "arms": {name: _summary(rows) for name, rows in by_arm.items()},
        "recipes": {name: plain(recipe) for name, recipe in final.items()},
        "sources": sources(slug),
        "versions": versions(),
        "seconds": {
            **{name: round(statistics.fmean(row["seconds"] for row in rows), 2) for name, rows in by_arm.items()},
            "total": round(time.perf_counter() - begin, 1),
        },
    }
    measured["finding"] = finding(measured["claims"]) + " " + claim.get("finding", "")
    measured["finding"] = measured["finding"].strip()
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
    method = [float(result["metrics"][metric]) for result in by_arm[row.get("arm", slug)]]
    baseline = [
        factor * float(result["metrics"][row.get("baseline_metric", metric)]) for result in by_arm[row["baseline"]]
    ]
    difference = paired_difference(method, baseline)
    sign = 1.0 if row["better"] == "higher" else -1.0
    low, high = difference["low"], difference["high"]
    worst = None if low is None or high is None else min(sign * low, sign * high)
    margin = row.get("margin")
    holds = row["kind"] == "report" or (worst is not None and worst > (0.0 if margin is None else -float(margin)))
    if row.get("every_seed"):
        holds = holds and all(sign * (a - b) > 0 for a, b in zip(method, baseline, strict=True))
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
        "holds": holds,
    }


def finding(claims: Sequence[Mapping[str, Any]]) -> str:
    """What came out, claim by claim."""
    sentences = []
    for claim in claims:
        low, high = claim["difference"]["low"], claim["difference"]["high"]
        interval = "" if low is None else f" [{low:+.4f}, {high:+.4f}]"
        verdict = {"report": "reported"}.get(claim["kind"], "holds" if claim["holds"] else "DOES NOT HOLD")
        sentences.append(f"{claim['text']}: {verdict} ({claim['difference']['mean']:+.4f}{interval}).")
    return " ".join(sentences)


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    names = ("accuracy", "nll", "ece", "aurc", "scaled/nll", "scaled/ece", "teacher/accuracy")
    return {name: [row["metrics"][name] for row in rows] for name in names if all(name in r["metrics"] for r in rows)}
