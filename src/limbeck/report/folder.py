"""Reads what the sections show: a run folder, or a comparison folder with several of them."""

import csv
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from limbeck.data import Data
from limbeck.errors import LimbeckError

FORMAT_VERSION = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Predictions:
    """What the student (and its teacher, if any) said about the test samples, in their order.

    ``logits`` and ``teacher_logits`` are [N, C] float, ``label`` and ``index`` [N] int64. ``others`` are the logits of
    whoever else was measured, by name: experts of the student, peers.
    """

    logits: Tensor
    label: Tensor
    index: Tensor
    teacher_logits: Tensor | None
    classes: tuple[str, ...]
    others: dict[str, Tensor]


@dataclass(frozen=True)
class Curve:
    """One logged quantity of one stage: ``values[i]`` at ``updates[i]``."""

    split: str
    name: str
    updates: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Stage:
    """One finished or unfinished stage of a seed."""

    name: str
    folder: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of ``result.json``, or nothing while the stage is unfinished."""
        path = self.folder / "result.json"
        return _json(path) if path.is_file() else {}

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of ``result.json``."""
        return {name: float(value) for name, value in self.result.get("metrics", {}).items() if value is not None}

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """``metrics.csv``, one curve for each split and name, in the order of first appearance."""
        path = self.folder / "metrics.csv"
        if not path.is_file():
            return ()
        found: dict[tuple[str, str], list[tuple[int, float]]] = {}
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                try:
                    point = int(row["update"]), float(row["value"])
                    found.setdefault((row["split"], row["name"]), []).append(point)
                except (KeyError, TypeError, ValueError):
                    raise LimbeckError(
                        f"{path}, line {line}: expected the columns update,epoch,split,name,value"
                    ) from None
        return tuple(
            Curve(split, name, tuple(u for u, _ in points), tuple(v for _, v in points))
            for (split, name), points in found.items()
        )

    @cached_property
    def predictions(self) -> Predictions | None:
        """``predictions.safetensors`` where the stage has one."""
        path = self.folder / "predictions.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                classes = tuple(json.loads((file.metadata() or {})["classes"]))
            return Predictions(
                tensors["logits"].float(),
                tensors["label"].long(),
                tensors["index"].long(),
                tensors["teacher_logits"].float() if "teacher_logits" in tensors else None,
                classes,
                {
                    name.removesuffix("_logits"): value.float()
                    for name, value in tensors.items()
                    if name.endswith("_logits") and name != "teacher_logits"
                },
            )
        except (SafetensorError, KeyError, ValueError) as error:
            raise LimbeckError(
                f"{path} does not hold logits, label, index and the metadata 'classes': {error}"
            ) from None


@dataclass(frozen=True)
class Seed:
    """One seed of an arm: its stages in the order in which they ran."""

    folder: Path
    seed: int
    run: dict[str, Any]
    stages: tuple[Stage, ...]

    @property
    def final(self) -> Stage:
        """The stage whose model is the student that is kept."""
        return next(stage for stage in self.stages if stage.name == self.run["final"])

    @cached_property
    def data(self) -> Data:
        """The data of its recipe, opened once more."""
        from limbeck.assemble import load_data

        return load_data(self.folder)

    @property
    def recipe(self) -> str | None:
        """The resolved recipe, as YAML."""
        path = self.folder / "recipe.yaml"
        return path.read_text(encoding="utf-8") if path.is_file() else None

    @property
    def teacher(self) -> dict[str, float]:
        """The teacher's test metrics: measured beside the student, else those of the stage that made it."""
        own = {k.removeprefix("teacher/"): v for k, v in self.final.metrics.items() if k.startswith("teacher/")}
        made = next((stage for stage in self.stages if stage.name == self.run.get("teacher")), None)
        return own or (_plain(made.metrics) if made else {})


@dataclass(frozen=True)
class Arm:
    """One method with its settings, over all its seeds; metrics hold one value a seed."""

    name: str
    method: str
    metrics: dict[str, list[float]]
    teacher: dict[str, list[float]]
    seconds: list[float]
    seeds: tuple[Seed, ...]


@dataclass(frozen=True)
class Difference:
    """A paired difference ``arm - baseline`` of one metric, with its 95% interval (None: not known)."""

    arm: str
    baseline: str
    metric: str
    better: str
    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Loaded:
    """All that a report can be about."""

    folder: Path
    title: str
    arms: tuple[Arm, ...]
    reference: str | None
    differences: tuple[Difference, ...]
    finding: str
    versions: dict[str, str]
    unfinished: tuple[str, ...]

    @property
    def comparison(self) -> bool:
        """Whether methods were set side by side."""
        return self.reference is not None

    @property
    def featured(self) -> Arm:
        """The arm shown where there is room for one: not the reference, and with a teacher if any has one."""
        rest = [arm for arm in self.arms if arm.name != self.reference] or list(self.arms)
        return next((arm for arm in rest if arm.teacher and arm.seeds), rest[0])


def load(folder: Path) -> Loaded:
    """Read a comparison folder (it has ``comparison.json``) or a run folder (``seed-*``).

    Raises:
        LimbeckError: neither is there, nothing has finished, or a file is of another format.
    """
    if not folder.is_dir():
        raise LimbeckError(f"there is no folder {folder}; expected a run folder or a comparison folder")
    return _comparison(folder) if (folder / "comparison.json").is_file() else _run(folder)


def _run(folder: Path) -> Loaded:
    seeds, unfinished = _seeds(folder)
    if not seeds:
        detail = f"; unfinished: {', '.join(unfinished)}" if unfinished else ""
        raise LimbeckError(f"{folder} holds neither comparison.json nor a finished seed-*/run.json{detail}")
    method = str(seeds[0].run.get("method", folder.name))
    arm = Arm(
        method,
        method,
        _over_seeds([_plain(seed.final.metrics) for seed in seeds]),
        _over_seeds([seed.teacher for seed in seeds]),
        [float(seed.run.get("seconds", "nan")) for seed in seeds],
        seeds,
    )
    return Loaded(folder, folder.name, (arm,), None, (), "", dict(seeds[0].run.get("versions", {})), tuple(unfinished))


def _comparison(folder: Path) -> Loaded:
    path = folder / "comparison.json"
    content = _json(path)
    arms, unfinished = [], []
    try:
        for row in content["arms"]:
            seeds, open_seeds = _seeds(folder / row["folder"])
            unfinished += [f"{row['name']}/{name}" for name in open_seeds]
            arms.append(
                Arm(
                    row["name"],
                    row["method"],
                    _plain({name: _numbers(values) for name, values in row["metrics"].items()}),
                    {
                        name.removeprefix("teacher/"): _numbers(values)
                        for name, values in (row.get("teacher") or {}).items()
                    },
                    _numbers(row.get("seconds") or []),
                    seeds,
                )
            )
        differences = tuple(_difference(row) for row in content.get("differences", []))
        title, reference = content.get("title") or folder.name, content["reference"]
    except (KeyError, TypeError, AttributeError) as error:
        raise LimbeckError(f"{path} is not a comparison that this version can read: {error!r}") from None
    if not arms:
        raise LimbeckError(f"{path} names no arms; run `limbeck compare` to the end first")
    finding, versions = content.get("finding") or "", content.get("versions") or {}
    return Loaded(folder, title, tuple(arms), reference, differences, finding, versions, tuple(unfinished))


def _difference(row: dict[str, Any]) -> Difference:
    seeds = row.get("seeds", 0)
    low, high = _numbers([row.get("low"), row.get("high")])
    known = math.isfinite(low) and math.isfinite(high)
    return Difference(
        row["arm"],
        row["baseline"],
        row["metric"],
        row["better"],
        float(row["mean"]),
        low if known else None,
        high if known else None,
        len(seeds) if isinstance(seeds, list) else int(seeds),
    )


def _seeds(folder: Path) -> tuple[tuple[Seed, ...], list[str]]:
    """The finished seeds in the order of their numbers, and the names of those that are not finished."""
    found, unfinished = [], []
    for path in folder.glob("seed-*"):
        if not (path / "run.json").is_file():
            unfinished.append(path.name)
            continue
        run = _json(path / "run.json")
        stages = tuple(Stage(name, path / name) for name in run.get("stages", []))
        final = next((stage for stage in stages if stage.name == run.get("final")), None)
        if final is None or not final.result:
            unfinished.append(path.name)
            continue
        found.append(Seed(path, int(run["seed"]), run, stages))
    return tuple(sorted(found, key=lambda seed: seed.seed)), sorted(unfinished)


def _plain(metrics: dict[str, T]) -> dict[str, T]:
    return {name: value for name, value in metrics.items() if not name.startswith("teacher/")}


def _over_seeds(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """One list a metric; a metric that some seed lacks is left out: means over different seeds mislead."""
    names = [name for name in (rows[0] if rows else {}) if all(name in row for row in rows)]
    return {name: [row[name] for row in rows] for name in names}


def _numbers(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LimbeckError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        version = content.get("format_version") if isinstance(content, dict) else None
        raise LimbeckError(f"{path} has format_version {version!r}; this version reads {FORMAT_VERSION}")
    return content
