"""From a resolved recipe and a seed to a method that can run."""

import functools
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from limbeck.data.data import Data
from limbeck.data.index import SOURCES
from limbeck.data.load import load, source_function
from limbeck.data.random import derive
from limbeck.data.samples import ImageData, Source
from limbeck.errors import LimbeckError
from limbeck.methods.index import METHODS
from limbeck.methods.method import Method, Nested, Ready, SingleFit
from limbeck.models import Classifier, build
from limbeck.models.classifier import ImageTask
from limbeck.models.model import Model
from limbeck.recipe import block_kinds, method_class, read
from limbeck.signature import without_none
from limbeck.stages.objective import Objective
from limbeck.stages.settings import FitSettings
from limbeck.teachers.stored import Stored


def assemble(recipe: Mapping[str, Any], seed: int, prefix: str = "", opened: dict[str, Data] | None = None) -> Method:
    """The method of a resolved recipe; its data are opened, its models are made when they are needed.

    Args:
        recipe: as :func:`limbeck.recipe.resolve` returns it.
        seed: decides splits and first weights.
        prefix: where the recipe is nested in another one, which decides its first weights.
        opened: data that are open already, by their blocks.

    Raises:
        LimbeckError: the data cannot be used as they are.
    """
    opened = {} if opened is None else opened
    cls = method_class(recipe["method"])
    arguments: dict[str, Any] = {key: value for key, value in recipe.items() if key != "method"}
    models: dict[str, Callable[[], Model]] = {}
    teachers: dict[str, Ready | Nested] = {}
    kinds = block_kinds(cls)
    data_blocks = {name: _data(recipe[name], seed, opened) for name, kind in kinds.items() if kind == "data"}
    data = next(iter(data_blocks.values()))
    _refuse_other_data(recipe["method"], cls, data)
    for name, kind in kinds.items():
        block = arguments.pop(name)
        if block is None:
            continue
        if kind == "model":
            needed = _hint(cls, name)
            models[name] = functools.partial(_student, block, data, derive(seed, prefix + name), name, needed)
        elif kind == "teacher" and isinstance(block, Mapping) and "method" in block:
            teachers[name] = Nested(name, assemble(block, seed, f"{prefix}{name}-", opened))
        elif kind == "teacher":
            teachers[name] = Ready(_teacher(recipe["method"], block, data, derive(seed, prefix + name)))
        elif kind == "fit":
            arguments[name] = block if isinstance(block, FitSettings) else FitSettings(**block)
    if issubclass(cls, Objective):
        fit = arguments.pop("fit")
        return SingleFit(cls, arguments, models, teachers, data, fit)
    made = {name: make() for name, make in models.items()}
    return cast("Method", cls(**made, **teachers, **data_blocks, **arguments))


def load_data(folder: Path) -> Data:
    """The data that the run of one seed was made with.

    Args:
        folder: ``runs/NAME/seed-N``.

    Raises:
        LimbeckError: the data were objects of a Python program, or are not there any more.
    """
    recipe = read(folder)
    block = recipe["data"]
    if "object" in block:
        raise LimbeckError(f"the data of {folder} were a {block['object']} of a Python program; pass them as data=")
    return _data(block, int(folder.name.removeprefix("seed-")), {})


def _data(block: Any, seed: int, opened: dict[str, Data]) -> Data:
    if isinstance(block, Data):
        return block
    if not isinstance(block, Mapping):
        raise LimbeckError(
            f"data is a {type(block).__name__}; wrap your datasets: limbeck.data.from_datasets(train=..., test=...)"
        )
    key = repr(sorted(block.items()))
    if key not in opened:
        arguments = dict(block)
        opened[key] = load(arguments.pop("name"), seed, **arguments)
    return opened[key]


def _hint(cls: type, name: str) -> Any:
    """The class that a method's constructor wants for an argument."""
    return without_none(typing.get_type_hints(vars(cls)["__init__"]).get(name, Model))


def _refuse_other_data(slug: str, cls: type, data: Data) -> None:
    """Say which sources a method can work on, where it cannot work on this one."""
    reader = cls.streams if issubclass(cls, Objective) else vars(cls)["__init__"]
    needed = typing.get_type_hints(reader).get("data", Data)
    if needed is Any:  # an objective that reads its data as any other does
        needed = ImageData if issubclass(_hint(cls, "student"), Classifier) else Data
    if isinstance(data, needed):
        return
    made = {name: typing.get_type_hints(source_function(name)).get("return") for name in SOURCES}
    given = {name: ImageData if kind is Source else kind for name, kind in made.items()}
    fitting = ", ".join(name for name, kind in given.items() if isinstance(kind, type) and issubclass(kind, needed))
    raise LimbeckError(
        f"{slug} works on {needed.__name__}, and data holds {type(data).__name__}; sources that fit: {fitting}"
    )


def _student(block: Any, data: Data, seed: int, name: str, needed: type) -> Model:
    model = _model(block, data, seed)
    if not isinstance(model, needed):
        raise LimbeckError(
            f"{name} must be a {needed.__name__}, and {model.factory or 'it'} is a {type(model).__name__}"
        )
    return model


def _teacher(slug: str, block: Any, data: Data, seed: int) -> Model:
    model = _model(block, data, seed)
    if isinstance(model, Stored) and METHODS[slug].teacher != "logits":
        served = ", ".join(row.slug for row in METHODS.values() if row.teacher == "logits")
        raise LimbeckError(
            f"{slug} asks its teacher for more than logits of the training samples in their training view, so stored "
            f"labels cannot stand in for it; they serve {served}"
        )
    return model


def _model(block: Any, data: Data, seed: int) -> Model:
    if isinstance(block, Model):
        return block
    if isinstance(block, nn.Module):
        if not isinstance(data.task, ImageTask) or not data.classes:
            raise LimbeckError(f"{type(block).__name__} is no limbeck Model: wrap it in the one of its task")
        return Classifier(block, data.classes, channels=data.task.channels)
    arguments = dict(block)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(arguments.pop("name"), data.task, **arguments)
