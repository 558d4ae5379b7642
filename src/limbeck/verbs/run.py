"""``run``: one method, one recipe, one seed."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from limbeck.assemble import assemble
from limbeck.data.data import Data
from limbeck.data.fingerprint import fingerprint
from limbeck.errors import LimbeckError
from limbeck.models.model import Model
from limbeck.recipe import Recipe, nest, overlay, read, resolve
from limbeck.stages.digest import digest
from limbeck.stages.files import locked, write_json, write_text
from limbeck.stages.fit import deciding
from limbeck.stages.progress import Reporter
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import FORMAT_VERSION, Context, drive, is_first_process, versions


@dataclass(frozen=True)
class Run:
    """What a run gave.

    Attributes:
        folder: the run folder of the seed, ``runs/NAME/seed-N``.
        model: the trained student.
        metrics: its numbers on the test split (fractions; ``latency_ms`` in milliseconds).
        result: all of ``result.json``.
    """

    folder: Path
    model: Model
    metrics: dict[str, float]
    result: dict[str, Any]


def prepare(method: str | Path | Mapping[str, Any], recipe: str = "small", **overrides: Any) -> Recipe:
    """The resolved recipe of a method with overrides.

    Args:
        method: a slug, a recipe file, a run folder, or a recipe as a mapping.
        recipe: which of the slug's recipes: small or paper.
        overrides: keys of the recipe, ``student={"width": 8}`` or ``**{"student.width": 8}``; live objects allowed.

    Raises:
        LimbeckError: unknown names and keys, values of a wrong type.
    """
    base = dict(method) if isinstance(method, Mapping) else read(method, recipe)
    return resolve(overlay(base, nest(overrides)))


def run(
    method: str | Path | Mapping[str, Any],
    *,
    seed: int = 0,
    recipe: str = "small",
    name: str | None = None,
    out: str | Path = "runs",
    quiet: bool = False,
    label: str = "",
    **overrides: Any,
) -> Run:
    """Train by a method; the same call goes on where it was stopped and does not repeat what is finished.

    Args:
        method: a slug, a recipe file, a run folder, or a recipe as a mapping.
        seed: decides splits, first weights, order and augmentation.
        recipe: which of the slug's recipes: small or paper.
        name: the run's folder below ``out``; by default the slug and a hash of the recipe.
        out: where run folders are made.
        quiet: show nothing.
        label: words before each line that is shown.
        overrides: keys of the recipe, such as ``student=my_module``, ``alpha=0.5`` or ``fit={"epochs": 5}``.

    Returns:
        The trained student, its metrics and where everything was written.

    Raises:
        LimbeckError: a fault in recipe or data, a folder in use or of another recipe, a loss that became NaN.
    """
    resolved = prepare(method, recipe, **overrides)
    folder = Path(out) / (name or default_name(resolved)) / f"seed-{seed}"
    first = is_first_process()
    with locked(folder) if first else contextlib.nullcontext():
        if first:
            _claim(folder, resolved)
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        context = Context(
            folder=folder,
            method=resolved["method"],
            seed=seed,
            pool=None if several else Path(out) / ".finished",
            reporter=Reporter(label, quiet=quiet),
        )
        begin = time.perf_counter()
        model = drive(assemble(resolved, seed).program(), context)
        if first:
            teacher = next((stage for stage in context.stages[:-1] if stage.startswith("teacher-")), None)
            write_json(
                folder / "run.json",
                {
                    "format_version": FORMAT_VERSION,
                    "method": resolved["method"],
                    "seed": seed,
                    "stages": context.stages,
                    "final": context.stages[-1],
                    "teacher": teacher,
                    "seconds": round(time.perf_counter() - begin, 3),
                    "versions": versions(),
                },
            )
    result = json.loads((folder / context.stages[-1] / "result.json").read_text(encoding="utf-8"))
    return Run(folder, model, result["metrics"], result)


def dry_run(
    method: str | Path | Mapping[str, Any], *, seed: int = 0, recipe: str = "small", **overrides: Any
) -> list[dict[str, Any]]:
    """The stages that :func:`run` would go through, their sizes and an estimate of their time; writes nothing.

    Raises:
        LimbeckError: a fault in recipe or data.
    """
    resolved = prepare(method, recipe, **overrides)
    context = Context(folder=Path(os.devnull), method=resolved["method"], seed=seed, dry_run=True)
    drive(assemble(resolved, seed).program(), context)
    return context.estimates


def default_name(resolved: Mapping[str, Any]) -> str:
    """``SLUG-HASH``: every recipe has a folder of its own."""
    text = json.dumps(_deciding(plain(resolved)), sort_keys=True)
    return f"{resolved['method']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def plain(recipe: Any) -> Any:
    """A recipe as plain data: live objects become their class and a fingerprint of their content."""
    if isinstance(recipe, FitSettings):
        return recipe.plain()
    if isinstance(recipe, Mapping):
        return {key: plain(value) for key, value in recipe.items()}
    if isinstance(recipe, list | tuple):
        return [plain(value) for value in recipe]
    if recipe is None or isinstance(recipe, str | int | float | bool):
        return recipe
    kind = f"{type(recipe).__module__}.{type(recipe).__qualname__}"
    return {"object": kind, "fingerprint": _fingerprint(recipe)}


def _fingerprint(value: Any) -> str:
    if isinstance(value, nn.Module):
        return digest(value)
    return fingerprint(value) if isinstance(value, Data) else ""


def _claim(folder: Path, resolved: Mapping[str, Any]) -> None:
    """Take a run folder for a recipe.

    Raises:
        LimbeckError: it belongs to another recipe; the message says what differs.
    """
    mine = plain(resolved)
    path = folder / "recipe.yaml"
    if not path.exists():
        write_text(path, yaml.safe_dump(mine, sort_keys=False))
        return
    theirs = _flat(_deciding(yaml.safe_load(path.read_text(encoding="utf-8"))))
    ours = _flat(_deciding(mine))
    differ = [
        f"{key}: {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} here"
        for key in sorted({*theirs, *ours})
        if theirs.get(key, "absent") != ours.get(key, "absent")
    ]
    if differ:
        raise LimbeckError(f"{folder} belongs to another recipe ({'; '.join(differ)}); choose another --name")


def _deciding(recipe: Any) -> Any:
    """A plain recipe without what changes no result, such as the number of workers."""
    if not isinstance(recipe, Mapping):
        return recipe
    kept = {key: _deciding(value) for key, value in recipe.items()}
    # A fit may have any name, such as "pretraining"; these settings tell it.
    return deciding(kept) if {"optimizer", "schedule"} <= kept.keys() else kept


def _flat(recipe: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(recipe, Mapping):
        return {prefix.removesuffix("."): recipe}
    return {key: value for name, part in recipe.items() for key, value in _flat(part, f"{prefix}{name}.").items()}
