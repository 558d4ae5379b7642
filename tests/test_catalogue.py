"""What there is: the list, the sources of evidence, and the state of evidence."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck import catalogue
from limbeck.errors import LimbeckError
from limbeck.methods.index import METHODS


def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """Put the evidence of kd, and nothing else, in a folder of its own."""
    monkeypatch.setattr(catalogue, "evidence_file", lambda slug: tmp_path / f"{slug}.json")
    (tmp_path / "kd.json").write_text(json.dumps(values))


def test_the_list_has_the_shape_that_others_read() -> None:
    rows = catalogue.list_methods()
    assert [row["slug"] for row in rows] == list(METHODS)
    for row in rows:
        assert list(row) == ["slug", "task", "paper", "arxiv", "kind", "evidence"]
        assert row["kind"] in ("paper", "baseline")
        assert row["evidence"] in ("holds", "open", "stale", "missing")


def test_evidence_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = catalogue.sources("kd")
    evidence(tmp_path, monkeypatch, sources=sources, claims=[{"holds": True}, {"holds": True}])
    assert catalogue.evidence_state("kd") == "holds"
    evidence(tmp_path, monkeypatch, sources=sources, claims=[{"holds": True}, {"holds": False}])
    assert catalogue.evidence_state("kd") == "open"
    evidence(tmp_path, monkeypatch, sources=sources | {"method": "0" * 64}, claims=[{"holds": True}])
    assert catalogue.evidence_state("kd") == "stale"
    assert catalogue.evidence_state("ps-kd") == "missing"


@pytest.mark.parametrize("slug", METHODS)
def test_a_method_is_described(slug: str) -> None:
    found = catalogue.describe(slug)
    assert "small" in found["recipes"]
    assert METHODS[slug].arxiv in found["doc"], "the docstring gives the paper's arXiv id"
    assert {"method", "small"} <= set(catalogue.sources(slug))


def test_an_unknown_slug() -> None:
    with pytest.raises(LimbeckError, match=r"unknown method 'ps-dk'\. Did you mean 'ps-kd'\? Known: supervised"):
        catalogue.describe("ps-dk")


@pytest.mark.parametrize("slug", METHODS)
def test_what_was_found_afterwards_stands_beside_what_was_measured(slug: str) -> None:
    file = Path(str(files("limbeck"))) / "recipes" / slug / "finding.yaml"
    words = yaml.safe_load(file.read_text()) if file.is_file() else {}
    assert set(words) <= {"finding", "regimes_tried"}
    assert all(list(row) == ["regime", "outcome"] for row in words.get("regimes_tried", []))
    assert "finding" not in catalogue.describe(slug)["recipes"]
    claims = [{"text": "a", "kind": "superior", "holds": False, "difference": {"mean": 0.5, "low": None, "high": None}}]
    found = catalogue.explained(slug, {"claims": claims, "slug": slug})
    assert found["finding"] == f"a: DOES NOT HOLD (+0.5000). {words.get('finding', '')}".strip()
    assert found["regimes_tried"] == words.get("regimes_tried", [])
    assert found["slug"] == slug
