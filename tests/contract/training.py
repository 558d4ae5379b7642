"""Trains any method as its small recipe says, but small enough for a test: tiny models, digits, few updates."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.assemble import assemble
from limbeck.data.samples import ImageData, Samples
from limbeck.models.classifier import Classifier
from limbeck.recipe import Recipe, block_kinds, method_class, overlay, read, resolve
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Objective
from limbeck.stages.progress import Reporter
from limbeck.stages.stage import Context, Program, drive

SEED = 0
# Some labels are wrong, some samples have none: hidden labels exist in both parts and differ from the labels.
DATA = {"name": "digits", "labels_per_class": 20, "label_noise": 0.1}
STUDENT = {"name": "cnn", "width": 4}
UPDATES, EVERY = 40, 10
FIT = {"updates": UPDATES, "batch_size": 50, "log_every": EVERY, "evaluations": 2, "accelerator": "cpu"}


@dataclass
class Trained:
    """What one run left behind.

    Attributes:
        folder: the run folder of the seed.
        model: the student.
        stages: the stages it went through, in order.
        before: copies of their objectives from before training, by the name of the stage.
    """

    folder: Path
    model: Classifier
    stages: list[Fit] = field(default_factory=list)
    before: dict[str, Objective] = field(default_factory=dict)

    @property
    def last(self) -> Fit:
        return self.stages[-1]


def small_recipe(slug: str, **fit: Any) -> Recipe:
    """The method's own small recipe, resolved, with data, models and fits that take a fraction of a second."""
    return resolve(_shrunk(read(slug, "small"), {**FIT, **fit}))


def _shrunk(recipe: Mapping[str, Any], fit: Mapping[str, Any], outermost: bool = True) -> Recipe:
    kinds = block_kinds(method_class(recipe["method"]))
    shrunk = dict(recipe)
    for name, kind in kinds.items():
        block = recipe.get(name)
        if kind == "data":
            view = {"view": block["view"]} if isinstance(block, Mapping) and "view" in block else {}
            if outermost:
                shrunk[name] = {**DATA, **view}
            elif isinstance(block, Mapping) and "name" in block:
                del shrunk[name]  # inherited
        elif kind == "fit":
            short = {key: value for key, value in (block or {}).items() if key not in ("epochs", *FIT)}
            shrunk[name] = {**short, **fit}
        elif kind == "teacher" and isinstance(block, Mapping) and "method" in block:
            shrunk[name] = _shrunk(block, fit, outermost=False)
        elif kind in ("model", "teacher"):
            shrunk[name] = dict(STUDENT)
    return shrunk


def train(
    recipe: Mapping[str, Any],
    folder: Path,
    *,
    seed: int = SEED,
    reporter: Reporter | None = None,
    data: Callable[[ImageData], ImageData] | None = None,
) -> Trained:
    """Run a resolved recipe in process.

    Args:
        recipe: see :func:`small_recipe`.
        folder: where the stages go.
        seed: the seed of the run.
        reporter: is told of every update.
        data: changes each of the data sets before anything sees them.
    """
    opened: dict[str, ImageData] = {}
    method = assemble(recipe, seed, opened=opened)
    if data is not None:
        method = assemble(recipe, seed, opened={key: data(value) for key, value in opened.items()})
    context = Context(folder, recipe["method"], seed, reporter=reporter or Reporter(quiet=True))
    stages: list[Fit] = []
    before: dict[str, Objective] = {}
    model = drive(_watched(method.program(), stages, before), context)
    return Trained(folder, model, stages, before)


def _watched(program: Program, stages: list[Fit], before: dict[str, Objective]) -> Program:
    artefact = None
    while True:
        try:
            stage = program.send(artefact)
        except StopIteration as finished:
            return finished.value
        assert isinstance(stage, Fit)
        stages.append(stage)
        for parameter in stage.objective.parameters():
            parameter.grad = None  # a teacher may still hold the last gradient of its own training
        before[stage.name] = copy.deepcopy(stage.objective)
        artefact = yield stage


class Killed(BaseException):
    """Stands for a process that ends at once."""


class KillAt(Reporter):
    """Ends a run after an update of its ``stage``-th stage (from 1), before that update can be saved."""

    def __init__(self, update: int, stage: int = 1) -> None:
        super().__init__(quiet=True)
        self.update, self.left = update, stage

    def advance(self, done: int, loss: float | None) -> None:
        self.left -= done == self.update
        if not self.left:
            raise Killed


def with_other_hidden_labels(data: ImageData) -> ImageData:
    """The same data with the hidden labels of the training and of the unlabelled samples in another order."""
    unlabeled = None if data.unlabeled is None else _reordered(data.unlabeled)
    return dataclasses.replace(data, train=_reordered(data.train), unlabeled=unlabeled)


def _reordered(samples: Samples) -> Samples:
    hidden = samples.hidden_labels
    assert hidden is not None
    order = torch.randperm(len(hidden), generator=torch.Generator().manual_seed(1))
    assert not torch.equal(hidden[order], hidden)
    twin = copy.copy(samples)
    twin.hidden_labels = hidden[order]
    return twin


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of all weights and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def different(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """The names under which two models do not agree bit for bit."""
    return [n for n in {**one, **other} if n not in one or n not in other or not torch.equal(one[n], other[n])]


def small_claim_arms(claim: Mapping[str, Any]) -> dict[str, Recipe]:
    """The recipes of a claim's arms."""
    return {name: overlay(claim.get("shared", {}), arm) for name, arm in claim["arms"].items()}
