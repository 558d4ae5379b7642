"""Sources: models of other tasks, each named by a model block, that are trained first where they are not yet."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.data.load import load_images
from limbeck.data.random import derive
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError, nearest
from limbeck.methods.classification.supervised import Supervised
from limbeck.metrics import transferability
from limbeck.models.build import build
from limbeck.models.classifier import Classifier
from limbeck.models.folder import READERS
from limbeck.stages.fit import Fit
from limbeck.stages.score import Table
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program

Measure = Literal["parc", "rsa", "cka", "dds", "leep", "nce", "h_score", "knn", "logme"]

COMPARING = {"rsa": transferability.rsa, "cka": transferability.cka, "dds": transferability.dds}
"""Measures that compare with the features of a model of the task itself."""

LABELLED = {
    "parc": transferability.parc,
    "h_score": transferability.h_score,
    "knn": transferability.leave_one_out_knn,
    "logme": transferability.logme,
}
"""Measures of features with labels."""

LOGARITHMS = ("leep", "nce", "logme")
"""Measures below 0 too, whose size says nothing by itself."""


def open_sources(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, ImageData]:
    """The data of the sources that are to be trained, by the name of the source; their splits are those of seed 0.

    Raises:
        LimbeckError: there are no sources, a name that cannot name a folder, a block that is no model block or does not
            say what the model knows, or data that cannot be opened.
    """
    if not sources:
        raise LimbeckError("sources names no model; give at least one, such as digits: {name: cnn, data: digits}")
    opened = {}
    for name, block in sources.items():
        if not re.fullmatch(r"[\w-]+", name):
            raise LimbeckError(f"sources: {name!r} names a folder; it may have letters, digits, - and _")
        if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
            raise LimbeckError(f"sources.{name} is {block!r}; it must be a model block with a name")
        if "data" in block:
            opened[name] = load_images(block["data"], 0, f"sources.{name}")
        elif block["name"] not in READERS and not (isinstance(block.get("classes"), int) and block["classes"] > 0):
            raise LimbeckError(
                f"sources.{name} does not say what the model knows: train it on data (data: digits), say how many "
                "classes its weights have (classes: 1000), or take a saved model (name: folder or hub)"
            )
    return opened


def train_sources(
    sources: Mapping[str, Mapping[str, Any]],
    opened: Mapping[str, ImageData],
    data: ImageData,
    settings: FitSettings,
) -> Program:
    """Make the sources and train those that have data, one stage each.

    First weights depend on the seed and the name of a source, not on the others.

    Args:
        sources: the blocks.
        opened: what :func:`open_sources` returned for them.
        data: of the task; its images decide the input of a network that has no data of its own.
        settings: of the trainings.

    Returns:
        The models by name.

    Raises:
        LimbeckError: a block makes no classifier of images.
    """
    seed = int(torch.randint(2**62, ()))
    models = {}
    for name, block in sources.items():
        task = opened[name].task if name in opened else data.task
        if "classes" in block:
            task = dataclasses.replace(task, classes=tuple(map(str, range(block["classes"]))))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, name))
            model = build(**{k: v for k, v in block.items() if k not in ("data", "classes")}, task=task)
        if not isinstance(model, Classifier):
            raise LimbeckError(f"sources.{name} is a model for {model.task}; it must be a classifier of images")
        if name in opened:
            model = yield Fit(f"source-{name}", Supervised(model), opened[name], settings)
        models[name] = model
    return models


def task_similarity(
    measure: str, said: Table, labels: Tensor, reference: Tensor | None = None, dims: int | None = None
) -> float:
    """How well a source suits a task, by a measure of :mod:`limbeck.metrics.transferability`.

    Args:
        measure: its name.
        said: ``probabilities`` and ``features`` of labelled images of the task.
        labels: their classes.
        reference: features of a model of the task, for the measures that compare.
        dims: principal components that are taken of all features; None for the features themselves.

    Raises:
        LimbeckError: no such measure, or as of the measures.
    """
    check_measure(measure)
    if measure == "leep":
        return transferability.leep(said["probabilities"], labels)
    if measure == "nce":
        return transferability.nce(said["probabilities"].argmax(-1), labels)

    def reduced(features: Tensor) -> Tensor:
        return features if dims is None else transferability.principal_components(features, dims)

    if measure in COMPARING:
        assert reference is not None
        return COMPARING[measure](reduced(said["features"]), reduced(reference))
    return LABELLED[measure](reduced(said["features"]), labels)


def comparable(scores: Mapping[str, float], measure: str, layers: Mapping[str, int] | None = None) -> list[float]:
    """Scores of which weights can be made: of measures below 0 too, and of corrected ones, brought to [0, 1].

    Args:
        scores: by the name of the source.
        measure: what they are.
        layers: of each source, for PARC's correction for capacity; None leaves it out.
    """
    values = list(scores.values())
    if layers is not None:
        values = transferability.with_capacity(values, [layers[name] for name in scores])
    elif measure not in LOGARITHMS:
        return values
    lowest, width = min(values), max(values) - min(values)
    return [(value - lowest) / width if width else 0.0 for value in values]


def num_layers(model: nn.Module) -> int:
    """Convolutional and linear layers of a network."""
    return sum(isinstance(part, nn.Conv2d | nn.Linear) for part in model.modules())


def check_measure(measure: str) -> None:
    """Refuse an unknown measure.

    Raises:
        LimbeckError: there is no such measure.
    """
    known = ("leep", "nce", *LABELLED, *COMPARING)
    if measure not in known:
        raise LimbeckError(f"there is no measure {measure!r}.{nearest(measure, known)} Known: {', '.join(known)}")
