"""The verb verify: claims, their verdicts, and the evidence that is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck import catalogue
from limbeck.catalogue import sentences
from limbeck.errors import LimbeckError
from limbeck.methods.index import METHODS
from limbeck.verbs import verify as module
from limbeck.verbs.verify import judge, parse_claim, read_claim, verify

CLAIM: dict[str, Any] = {
    "seeds": 5,
    "claims": [
        {
            "text": "ps-kd is better calibrated",
            "primary": True,
            "kind": "superior",
            "metric": "ece",
            "better": "lower",
            "baseline": "supervised",
        },
        {
            "text": "and not less accurate",
            "kind": "noninferior",
            "margin": 0.9,
            "metric": "accuracy",
            "better": "higher",
            "baseline": "supervised",
        },
        {
            "text": "against temperature scaling",
            "kind": "report",
            "metric": "nll",
            "better": "lower",
            "baseline": "supervised",
            "baseline_metric": "scaled/nll",
        },
    ],
    "shared": {"data": "digits", "student": {"name": "mlp", "hidden": 8}, "fit": {"updates": 8, "batch_size": 32}},
    "arms": {"ps-kd": {"method": "ps-kd"}, "supervised": {"method": "supervised"}},
    "tuning": {
        "trials": 2,
        "seeds": 1,
        "metric": "nll",
        "better": "lower",
        "space": {"fit.optimizer.lr": [0.01, 0.1]},
        "arms": {"ps-kd": {"alpha_T": [0.5, 0.8]}},
    },
    "budget": {"rule": "8 updates of 32 samples for every arm"},
}
SHAPE = {
    "format_version": int,
    "slug": str,
    "claims": list,
    "tuning": dict,
    "budget": dict,
    "regimes_tried": list,
    "versions": dict,
    "seconds": dict,
    "finding": str,
}
CLAIM_SHAPE: dict[str, Any] = {
    "text": str,
    "primary": bool,
    "kind": str,
    "margin": (float, type(None)),
    "metric": str,
    "better": str,
    "baseline_name": str,
    "seeds": list,
    "method": list,
    "baseline": list,
    "difference": dict,
    "holds": bool,
}


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """ps-kd claims what a moment can check."""
    monkeypatch.setattr(module, "read_claim", lambda slug: parse_claim(yaml.safe_dump(CLAIM, sort_keys=False), slug))


@pytest.mark.usefixtures("claimed")
def test_a_claim_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "evidence" / "ps-kd.json"
    monkeypatch.setattr(module, "evidence_file", lambda slug: file)
    monkeypatch.setattr(catalogue, "evidence_file", lambda slug: file)
    assert catalogue.evidence_state("ps-kd") == "missing"
    measured = verify("ps-kd", out=tmp_path, quiet=True)
    assert json.loads(file.read_text()) == measured

    for key, kind in SHAPE.items():
        assert isinstance(measured[key], kind), key
    assert measured["slug"] == "ps-kd"
    assert measured["claims"][0]["primary"]
    for claim, row in zip(measured["claims"], CLAIM["claims"], strict=True):
        for key, kind in CLAIM_SHAPE.items():
            assert isinstance(claim[key], kind), key
        assert claim["text"] == row["text"]
        assert claim["seeds"] == [100, 101, 102, 103, 104]
        assert len(claim["method"]) == len(claim["baseline"]) == 5
        assert list(claim["difference"]) == ["mean", "low", "high"]
    for arm, key in (("ps-kd", "method"), ("supervised", "baseline")):
        results = [
            json.loads((tmp_path / "verify-ps-kd" / arm / f"seed-{seed}" / "fit" / "result.json").read_text())
            for seed in range(100, 105)
        ]
        assert measured["claims"][0][key] == [result["metrics"]["ece"] for result in results]
    assert measured["claims"][2]["baseline"] == [result["metrics"]["scaled/nll"] for result in results]

    # Every arm had the same number of trials, and the chosen settings are those of the runs.
    trials = {
        arm: json.loads((tmp_path / "verify-ps-kd/tune" / arm / "tuning.json").read_text()) for arm in CLAIM["arms"]
    }
    assert {arm: len(found["trials"]) for arm, found in trials.items()} == {"ps-kd": 2, "supervised": 2}
    for arm, found in trials.items():
        assert measured["tuning"]["chosen"][arm] == found["best"]
        lr = measured["recipes"][arm]["fit"]["optimizer"]["lr"]
        assert lr == found["best"]["fit.optimizer.lr"]
    assert measured["budget"]["arms"]["ps-kd"] == measured["budget"]["arms"]["supervised"]
    assert measured["budget"]["arms"]["ps-kd"]["updates"] == 8

    state = "holds" if all(claim["holds"] for claim in measured["claims"]) else "open"
    assert catalogue.evidence_state("ps-kd") == state
    file.write_text(json.dumps(measured | {"sources": measured["sources"] | {"claim": "changed"}}))
    assert catalogue.evidence_state("ps-kd") == "stale"


@pytest.mark.usefixtures("claimed")
def test_the_packages_own_file_needs_five_seeds_and_the_claim_as_it_is(tmp_path: Path) -> None:
    for options in ({"seeds": 4}, {"fit": {"updates": 3}}):
        with pytest.raises(LimbeckError, match=r"needs 5 seeds and the claim as it is; give --evidence FILE"):
            verify("ps-kd", out=tmp_path, quiet=True, **options)
    with pytest.raises(LimbeckError, match="seeds is 0"):
        verify("ps-kd", seeds=0, out=tmp_path, evidence=tmp_path / "x.json", quiet=True)
    assert not list(tmp_path.iterdir())


ROW: dict[str, Any] = {"text": "t", "kind": "superior", "metric": "nll", "better": "lower", "baseline": "b"}


def judged(method: list[float], baseline: list[float], **row: Any) -> dict[str, Any]:
    metric = row.get("metric", "nll")
    by_arm = {
        "m": [{"metrics": {metric: value}} for value in method],
        "b": [{"metrics": {metric: value, "scaled/nll": value / 2}} for value in baseline],
    }
    return judge(ROW | row, "m", by_arm, range(len(method)))


def test_superior() -> None:
    lower, higher = [1.0, 1.1, 1.2], [2.0, 2.2, 2.1]
    assert judged(lower, higher)["holds"]
    assert not judged(higher, lower)["holds"]
    assert judged(higher, lower, better="higher")["holds"]
    assert not judged([1.0, 2.0, 3.0], [2.0, 1.0, 3.5])["holds"]
    assert not judged([1.0], [2.0])["holds"], "one seed shows nothing"


def test_noninferior_allows_the_margin_and_no_more() -> None:
    method, baseline = [1.00, 1.01, 1.02], [0.90, 0.92, 0.91]  # worse by 0.1
    assert judged(method, baseline, kind="noninferior", margin=0.2)["holds"]
    assert not judged(method, baseline, kind="noninferior", margin=0.05)["holds"]
    # The other direction is no loss at all.
    assert judged(method, baseline, kind="noninferior", margin=0.0, better="higher")["holds"]
    accuracy = judged(baseline, method, kind="noninferior", margin=0.05, better="higher", metric="accuracy")
    assert not accuracy["holds"]


def test_report_always_holds() -> None:
    assert judged([3.0, 2.0], [1.0, 1.5], kind="report")["holds"]
    assert judged([3.0, 2.0], [1.0, 1.5], kind="report", every_seed=True)["holds"]


def test_the_baseline_factor_asks_for_more() -> None:
    method, baseline = [0.90, 0.91, 0.92], [1.0, 1.01, 1.02]
    assert judged(method, baseline)["holds"]
    asked = judged(method, baseline, baseline_factor=0.85)
    assert not asked["holds"]
    assert asked["baseline"] == pytest.approx([0.85, 0.8585, 0.867])
    assert judged([0.8, 0.81, 0.82], baseline, baseline_factor=0.85)["holds"]


def test_every_seed_asks_each_of_them() -> None:
    method, baseline = [1.0] * 9 + [2.05], [2.0, 2.1, 1.9, 2.05, 1.95, 2.0, 2.02, 1.98, 2.0, 2.0]
    assert judged(method, baseline)["holds"]
    assert not judged(method, baseline, every_seed=True)["holds"]
    assert judged(method[:9], baseline[:9], every_seed=True)["holds"]


def test_another_metric_of_the_baseline() -> None:
    found = judged([1.0, 1.1], [2.0, 3.0], baseline_metric="scaled/nll")
    assert found["baseline"] == [1.0, 1.5]
    with pytest.raises(LimbeckError, match=r"claim 't': 'nlll' is not measured\. Did you mean 'nll'\?"):
        judge(ROW | {"metric": "nlll"}, "m", {"m": [{"metrics": {"nll": 1.0}}], "b": []}, [0])


def test_the_finding_says_what_does_not_hold() -> None:
    text = sentences([judged([3.0, 3.1], [1.0, 1.2]), judged([1.0, 1.1], [2.0, 2.2], kind="report")])
    assert "t: DOES NOT HOLD (+1.9500 [" in text
    assert "t: reported (-1.0500 [" in text


@pytest.mark.parametrize("slug", [slug for slug in METHODS if "claim" in catalogue.describe(slug)["recipes"]])
def test_every_shipped_claim_is_well_formed_and_its_arms_resolve(slug: str) -> None:
    from limbeck.recipe import nest, overlay, resolve

    claim = read_claim(slug)
    assert claim.get("seeds", 5) >= 5
    for name, arm in claim["arms"].items():
        recipe = overlay(claim.get("shared", {}), arm)
        for key, values in module.arm_space(claim["tuning"], name).items():
            for value in values if isinstance(values, list) else [values["low"], values["high"]]:
                resolve(overlay(recipe, nest({key: value})))


def changed(where: str, value: Any) -> str:
    claim = json.loads(json.dumps(CLAIM))
    block: Any = claim
    *path, last = where.split("/")
    for part in path:
        block = block[int(part)] if part.isdigit() else block[part]
    if value is None:
        del block[last]
    else:
        block[last] = value
    return yaml.safe_dump(claim, sort_keys=False)


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("tuning", None, "lacks 'tuning'"),
        ("tuning/metric", None, "tuning lacks 'metric'"),
        ("tuning", 3, "tuning must be a mapping with space, trials"),
        ("sedes", 5, r"unknown key .*sedes'\. Did you mean 'seeds'\?"),
        ("claims/0/primary", None, "the first claim must be the primary one"),
        ("claims/0/kind", "superiour", r"is 'superiour'\. Did you mean 'superior'\?"),
        ("claims/0/better", "less", "better is 'less'; it must be higher or lower"),
        ("claims/0/margin", 0.1, "is superior and takes no margin"),
        ("claims/1/margin", None, "is noninferior and needs a margin"),
        ("claims/1/margin", -0.1, "needs a margin, a number from 0 on"),
        ("claims/0/metric", None, "a claim lacks 'metric'"),
        ("claims/0/metrics", "x", r"unknown key .*Did you mean 'metric'\?"),
        ("claims/0/baseline", "superwised", r"names the arm 'superwised'\. Did you mean 'supervised'\?"),
        ("tuning/trials", 3, "the space of supervised has 2 points and tuning.trials is 3; every arm gets the same"),
        ("tuning/arms/pskd", {}, r"tuning\.arms: unknown key 'pskd'\. Did you mean 'ps-kd'\?"),
        ("arms/tune", {"method": "supervised"}, "an arm cannot be called 'tune'"),
    ],
)
def test_mistakes_in_a_claim(where: str, value: Any, said: str) -> None:
    with pytest.raises(LimbeckError, match=said):
        parse_claim(changed(where, value), "ps-kd")


def test_no_claim() -> None:
    with pytest.raises(LimbeckError, match="supervised claims nothing"):
        read_claim("supervised")
    with pytest.raises(LimbeckError, match=r"unknown method 'ps-dk'\. Did you mean 'ps-kd'\?"):
        read_claim("ps-dk")
