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
from limbeck.data.data import Data, Records
from limbeck.models.model import Model
from limbeck.recipe import Recipe, block_kinds, method_class, overlay, read, resolve
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Objective
from limbeck.stages.progress import Reporter
from limbeck.stages.stage import Context, Program, Stage, drive
from tests.contract import tiny

SEED = 0
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
        untrained: copies of the models from before the stages that give models, by the name of the stage.
        halves: how many times a stage came to update UPDATES // 2.
    """

    folder: Path
    model: Model
    stages: list[Stage] = field(default_factory=list)
    before: dict[str, Objective] = field(default_factory=dict)
    untrained: dict[str, Model] = field(default_factory=dict)
    halves: int = 0

    @property
    def fits(self) -> list[Fit]:
        return [stage for stage in self.stages if isinstance(stage, Fit)]

    @property
    def data(self) -> Data:
        """What the last fit worked on, or the last stage where there is none."""
        found: Data = self.last.data if self.fits else self.stages[-1].data  # type: ignore[attr-defined]
        return found

    @property
    def last(self) -> Fit:
        return self.fits[-1]


def small_recipe(slug: str, **fit: Any) -> Recipe:
    """The method's own small recipe, resolved, with data, models and fits that take a fraction of a second."""
    return resolve(_shrunk(read(slug, tiny.RECIPES.get(slug, "small")), {**FIT, **tiny.FITS.get(slug, {}), **fit}))


def _shrunk(recipe: Mapping[str, Any], fit: Mapping[str, Any], outermost: bool = True) -> Recipe:
    kinds = block_kinds(method_class(recipe["method"]))
    shrunk = {**recipe, **tiny.ARGUMENTS.get(recipe["method"], {})}
    for name, kind in kinds.items():
        block = recipe.get(name)
        if kind == "data":
            source = block["name"] if isinstance(block, Mapping) and "name" in block else block
            if outermost:
                view = {"view": block["view"]} if isinstance(block, Mapping) and "view" in block else {}
                stand_in = tiny.DATA.get(str(source))
                shrunk[name] = dict(stand_in) if stand_in else {**tiny.DIGITS, **view}
            elif isinstance(block, Mapping) and "name" in block:
                del shrunk[name]  # inherited
            elif isinstance(block, Mapping):
                shrunk[name] = {key: value for key, value in block.items() if key != "train_size"}
        elif kind == "fit":
            short = {key: value for key, value in (block or {}).items() if key not in ("epochs", *FIT)}
            shrunk[name] = {**short, **fit}
        elif kind == "teacher" and isinstance(block, Mapping) and "method" in block:
            shrunk[name] = _shrunk(block, fit, outermost=False)
        elif kind in ("model", "teacher") and block is not None:
            builder = block["name"] if isinstance(block, Mapping) else block
            shrunk[name] = dict(tiny.MODELS.get(builder, tiny.CLASSIFIER))
    return shrunk


def train(
    recipe: Mapping[str, Any],
    folder: Path,
    *,
    seed: int = SEED,
    reporter: Reporter | None = None,
    data: Callable[[Data], Data] | None = None,
) -> Trained:
    """Run a resolved recipe in process.

    Args:
        recipe: see :func:`small_recipe`.
        folder: where the stages go.
        seed: the seed of the run.
        reporter: is told of every update.
        data: changes each of the data sets before anything sees them.
    """
    opened: dict[str, Data] = {}
    method = assemble(recipe, seed, opened=opened)
    if data is not None:
        method = assemble(recipe, seed, opened={key: data(value) for key, value in opened.items()})
    watch = reporter or Halves()
    context = Context(folder, recipe["method"], seed, reporter=watch)
    trained = Trained(folder, None)  # type: ignore[arg-type]
    trained.model = drive(_watched(method.program(), trained), context)
    trained.halves = watch.count if isinstance(watch, Halves) else 0
    return trained


def _watched(program: Program, trained: Trained) -> Program:
    artefact = None
    while True:
        try:
            stage = program.send(artefact)
        except StopIteration as finished:
            return finished.value
        trained.stages.append(stage)
        if isinstance(stage.untrained(), Model):
            trained.untrained[stage.name] = copy.deepcopy(stage.untrained())
        if isinstance(stage, Fit):
            for parameter in stage.objective.parameters():
                parameter.grad = None  # a teacher may still hold the last gradient of its own training
            trained.before[stage.name] = copy.deepcopy(stage.objective)
        artefact = yield stage


class Halves(Reporter):
    """Counts how many times a stage came to update UPDATES // 2."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.count = 0

    def advance(self, done: int, loss: float | None) -> None:
        self.count += done == UPDATES // 2


class Killed(BaseException):
    """Stands for a process that ends at once."""


class KillAt(Reporter):
    """Ends a run when its ``stage``-th stage (from 1) to come so far is at an update, before that can be saved."""

    def __init__(self, update: int, stage: int = 1) -> None:
        super().__init__(quiet=True)
        self.update, self.left = update, stage

    def advance(self, done: int, loss: float | None) -> None:
        self.left -= done == self.update
        if not self.left:
            raise Killed


def with_other_hidden_labels(data: Data) -> Data:
    """The same data with all that is hidden of the training and of the unlabelled samples in another order."""
    unlabeled = None if data.unlabeled is None else _reordered(data.unlabeled)
    return dataclasses.replace(data, train=_reordered(data.train), unlabeled=unlabeled)


def hidden(samples: Records) -> dict[str, Tensor]:
    """What is known of the samples but never trained on."""
    return {name: value for name, value in vars(samples).items() if name.startswith("hidden_") and value is not None}


def _reordered(samples: Records) -> Records:
    twin = copy.copy(samples)
    for name, value in hidden(samples).items():
        order = torch.randperm(len(value), generator=torch.Generator().manual_seed(1))
        assert not torch.equal(value[order], value)
        setattr(twin, name, value[order])
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
