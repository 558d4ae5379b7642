"""What there is: methods, their papers, recipes, claims and evidence. Imports no torch."""

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, nearest
from limbeck.methods.index import METHODS
from limbeck.yaml_text import read_yaml

_PACKAGE = resources.files("limbeck")


def list_methods() -> list[dict[str, Any]]:
    """One row a method: slug, task, paper, arxiv, kind and the state of its evidence."""
    return [
        {
            "slug": row.slug,
            "task": row.task,
            "paper": row.paper,
            "arxiv": row.arxiv,
            "kind": row.kind,
            "evidence": evidence_state(row.slug),
        }
        for row in METHODS.values()
    ]


def evidence(slug: str) -> dict[str, Any] | None:
    """The measured evidence of a method, or None."""
    file = evidence_file(slug)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def evidence_file(slug: str) -> Path:
    """Where the evidence of a method is, or would be."""
    return Path(str(_PACKAGE / "evidence" / f"{slug}.json"))


def evidence_state(slug: str) -> str:
    """``holds`` (every claim), ``open`` (a claim does not hold), ``stale`` (inputs changed since) or ``missing``."""
    measured = evidence(slug)
    if measured is None:
        return "missing"
    if measured.get("sources") != sources(slug):
        return "stale"
    return "holds" if all(claim["holds"] for claim in measured["claims"]) else "open"


def sources(slug: str) -> dict[str, str]:
    """SHA-256 of what evidence depends on: the method's source, its small recipe and its claim."""
    files = {
        "method": _source(slug),
        "small": _PACKAGE / "recipes" / slug / "small.yaml",
        "claim": _PACKAGE / "recipes" / slug / "claim.yaml",
    }
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()}


def explained(slug: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, with its sentences and the words of ``finding.yaml``: why, and every regime that was tried."""
    file = _PACKAGE / "recipes" / slug / "finding.yaml"
    words = read_yaml(file.read_text(encoding="utf-8"), f"recipes/{slug}/finding.yaml") if file.is_file() else {}
    finding = f"{sentences(measured['claims'])} {words.get('finding', '')}".strip()
    return {**measured, "regimes_tried": words.get("regimes_tried", []), "finding": finding}


def sentences(claims: Sequence[Mapping[str, Any]]) -> str:
    """What came out, claim by claim."""
    found = []
    for claim in claims:
        low, high = claim["difference"]["low"], claim["difference"]["high"]
        interval = "" if low is None else f" [{low:+.4f}, {high:+.4f}]"
        verdict = {"report": "reported"}.get(claim["kind"], "holds" if claim["holds"] else "DOES NOT HOLD")
        found.append(f"{claim['text']}: {verdict} ({claim['difference']['mean']:+.4f}{interval}).")
    return " ".join(found)


def describe(slug: str) -> dict[str, Any]:
    """Everything about one method: its row, docstring, recipes (with its claim) and evidence.

    Raises:
        LimbeckError: unknown slug.
    """
    if slug not in METHODS:
        raise LimbeckError(f"unknown method {slug!r}.{nearest(slug, METHODS)} Known: {', '.join(METHODS)}")
    folder = _PACKAGE / "recipes" / slug
    recipes = {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".yaml") and file.name != "finding.yaml"
    }
    row = next(row for row in list_methods() if row["slug"] == slug)
    measured = evidence(slug)
    return {
        **row,
        "year": METHODS[slug].year,
        "doc": docstring(slug),
        "recipes": recipes,
        "measured": None if measured is None else explained(slug, measured),
    }


def docstring(slug: str) -> str:
    """The docstring of a method's class, read without importing it."""
    name = METHODS[slug].path.partition(":")[2]
    for node in ast.parse(_source(slug).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return ast.get_docstring(node) or ""
    raise LimbeckError(f"{METHODS[slug].path} has no class {name}")


def _source(slug: str) -> Traversable:
    module = METHODS[slug].path.partition(":")[0]
    return _PACKAGE.joinpath(*Path(*module.split(".")[1:]).with_suffix(".py").parts)
