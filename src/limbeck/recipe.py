"""Recipes: YAML that configures a method, checked against the signatures of what it names.

A recipe is a mapping of a method's arguments. Some of them are blocks: a model, a teacher (a model or
another method), the data, the settings of a fit. A block names what it configures (``name: cnn``) and gives
its arguments beside; ``student: cnn`` is short for ``student: {name: cnn}``. A teacher that is a method
inherits the data and the fit of the method it teaches, except for what it sets itself.
"""

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from limbeck.data.index import SOURCES
from limbeck.errors import LimbeckError, nearest
from limbeck.methods.index import METHODS
from limbeck.models.index import BUILDERS

Recipe = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but with 1e-3 a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def parse_value(text: str) -> Any:
    """The value that ``text`` means in a recipe."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def read(source: str | Path, which: str = "small") -> Recipe:
    """The recipe of a slug (``small`` or ``paper``), or of a YAML file.

    Raises:
        LimbeckError: no such slug, recipe or file, or a file that is not a mapping.
    """
    name = str(source)
    if name in METHODS:
        file = resources.files("limbeck") / "recipes" / name / f"{which}.yaml"
        if not file.is_file():
            there = sorted(
                f.name.removesuffix(".yaml") for f in (resources.files("limbeck") / "recipes" / name).iterdir()
            )
            raise LimbeckError(f"{name} has no recipe {which!r}.{nearest(which, there)} There are: {', '.join(there)}")
        return read_yaml(file.read_text(encoding="utf-8"), f"{name}/{which}.yaml")
    path = Path(name)
    if path.is_dir() and (path / "recipe.yaml").exists():
        path = path / "recipe.yaml"
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise LimbeckError(f"there is no recipe file {path}")
        return read_yaml(path.read_text(encoding="utf-8"), str(path))
    raise LimbeckError(
        f"unknown method {name!r}.{nearest(name, METHODS)} Give one of: {', '.join(METHODS)}, or a recipe file .yaml"
    )


def read_yaml(text: str, name: str) -> Recipe:
    """A YAML mapping.

    Raises:
        LimbeckError: not YAML, or not a mapping.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise LimbeckError(f"{name} is not YAML: {error}") from None
    if not isinstance(value, dict):
        raise LimbeckError(f"{name} must be a mapping of keys to values, it is {type(value).__name__}")
    return value


def nest(dotted: Mapping[str, Any]) -> Recipe:
    """``{"fit.optimizer.lr": 0.1}`` as nested mappings; a bare name beside dotted keys names the block."""
    nested: Recipe = {}
    for key, value in dotted.items():
        *path, last = key.split(".")
        block = nested
        for part in path:
            if not isinstance(block.get(part, {}), dict):
                block[part] = _named(part, block[part])
            block = block.setdefault(part, {})
        if isinstance(block.get(last), dict) and not isinstance(value, Mapping):
            value = {**_named(last, value), **block[last]}
        block[last] = dict(value) if isinstance(value, Mapping) else value
    return nested


def overlay(base: Any, over: Any, key: str = "") -> Any:
    """``over`` laid upon ``base``, block by block.

    A block that gets another name starts anew: the arguments of the old one do not carry over.
    """
    if isinstance(base, Mapping) and isinstance(over, str):
        over = _named(key, over)
    if isinstance(base, str) and isinstance(over, Mapping):
        base = _named(key, base)
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return dict(over) if isinstance(over, Mapping) else over
    for kind in ("name", "method"):
        if kind in base and kind in over and over[kind] != base[kind]:
            return dict(over)
    merged = dict(base)
    for part, value in over.items():
        merged[part] = overlay(base[part], value, part) if part in base else value
    return merged


def _named(key: str, value: Any) -> Recipe:
    """The block that a bare name stands for."""
    if key == "teacher" and value in METHODS:
        return {"method": value}
    if isinstance(value, str) and key in ("student", "teacher") and (Path(value) / "config.json").is_file():
        return {"name": "folder", "path": value}
    return {"name": value}


def method_class(slug: str) -> type:
    """The class of a method.

    Raises:
        LimbeckError: unknown slug.
    """
    if slug not in METHODS:
        raise LimbeckError(f"unknown method {slug!r}.{nearest(slug, METHODS)} Known: {', '.join(METHODS)}")
    module, _, name = METHODS[slug].path.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


def block_kinds(cls: type) -> dict[str, str]:
    """Which arguments of a method are blocks: name -> model, teacher, data or fit."""
    from limbeck.data.samples import ImageData
    from limbeck.models.classifier import Classifier
    from limbeck.stages.objective import Objective
    from limbeck.stages.settings import FitSettings
    from limbeck.teachers.frozen import Frozen

    kinds = {Classifier: "model", Frozen: "teacher", ImageData: "data", FitSettings: "fit"}
    hints = typing.get_type_hints(vars(cls)["__init__"])
    found = {name: kinds[hint] for name, hint in hints.items() if isinstance(hint, type) and hint in kinds}
    if issubclass(cls, Objective):
        found |= {"data": "data", "fit": "fit"}
    return found


def resolve(recipe: Mapping[str, Any], inherited: Mapping[str, Any] | None = None, where: str = "") -> Recipe:
    """Check a recipe and write every default out.

    Values that are live objects (an ``nn.Module``, an ``ImageData``) stay what they are.

    Raises:
        LimbeckError: an unknown key or name (with the nearest match), or a value of the wrong type.
    """
    if "method" not in recipe:
        raise LimbeckError(f"{where or 'the recipe'} names no method; add a line 'method: SLUG'")
    cls = method_class(recipe["method"])
    kinds = block_kinds(cls)
    base = {"data": {"name": "digits"}, **(inherited or {})}
    known = ["method", *_options(cls, kinds), *kinds]
    _refuse_unknown(recipe, known, where)
    own = {key: value for key, value in recipe.items() if key != "method" and key not in kinds}
    resolved: Recipe = {"method": recipe["method"], **check(cls, own, where, skip=kinds)}
    order = sorted(kinds.items(), key=lambda item: ("data", "model", "fit", "teacher").index(item[1]))
    for name, kind in order:
        value = recipe.get(name)
        if kind in ("data", "fit") and not _live(value):
            value = _inherit(base.get(name, {}), value, name, where)
        if value is None:
            raise LimbeckError(f"{where}{name} is missing: {recipe['method']} needs a {kind} there")
        resolved[name] = value if _live(value) else _resolve_block(kind, name, value, f"{where}{name}.", resolved)
    return resolved


def _resolve_block(kind: str, name: str, value: Any, where: str, outer: Recipe) -> Recipe:
    block = dict(value) if isinstance(value, Mapping) else _named("teacher" if kind == "teacher" else name, value)
    if kind == "fit":
        return _resolve_fit(block, where)
    if kind == "teacher" and "method" in block:
        return resolve(block, {key: outer[key] for key in ("data", "fit") if key in outer}, where)
    if "name" not in block:
        raise LimbeckError(f"{where}name is missing: which {kind}? Known: {', '.join(_names(kind))}")
    named = block.pop("name")
    functions = data_functions(named) if kind == "data" else [model_function(named)]
    skip = {"task", "num_classes"} if kind != "data" else set()
    known = [option for function in functions for option in _options(function, skip)]
    if not any(_takes_anything(function) for function in functions):
        _refuse_unknown(block, known, where)
    checked: Recipe = {"name": named}
    for number, function in enumerate(functions):
        mine = _options(function, skip)
        first = number == 0
        rest = {k: v for k, v in block.items() if k in mine or (first and k not in known)}
        checked |= check(function, rest, where, skip=skip)
    return checked


def _inherit(base: Any, value: Any, name: str, where: str) -> Any:
    if value is None:
        return base
    if _live(base):
        raise LimbeckError(f"{where}{name} cannot be changed by keys: it was given as a {type(base).__name__}")
    return overlay(base, value, name)


def _resolve_fit(block: Recipe, where: str) -> Recipe:
    from limbeck.stages.settings import FitSettings, optimizer_class, schedule_function

    checked = check(FitSettings, {k: v for k, v in block.items() if k not in ("optimizer", "schedule")}, where)
    for key, find in (("optimizer", optimizer_class), ("schedule", schedule_function)):
        part = overlay(checked[key], block.get(key, {}), key)
        part = part if isinstance(part, dict) else {"name": part}
        arguments = {k: v for k, v in part.items() if k != "name"}
        function = find(part["name"])
        _refuse_unknown(arguments, _options(function, {"params"}), f"{where}{key}.")
        values = check(function, arguments, f"{where}{key}.", skip={"params"})
        checked[key] = {"name": part["name"], **{k: v for k, v in values.items() if k in arguments}}
    return checked


def check(function: Callable[..., Any], values: Mapping[str, Any], where: str, skip: Iterable[str] = ()) -> Recipe:
    """``values`` converted to the types of a signature, with its defaults.

    Raises:
        LimbeckError: an unknown or missing key, or a value of the wrong type.
    """
    import jsonargparse

    skipped = {*skip} & {*inspect.signature(function).parameters}
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    add = parser.add_class_arguments if inspect.isclass(function) else parser.add_function_arguments
    add(function, skip={*skipped}, fail_untyped=False)
    _refuse_unknown(values, _options(function, skipped), where) if not _takes_anything(function) else None
    try:
        checked: Recipe = parser.parse_object(dict(values)).as_dict()
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        message = " ".join(str(error).replace("Parser key", "key").split())
        raise LimbeckError(f"{where or 'recipe: '}{message}") from None
    return {**{k: v for k, v in values.items() if k not in checked}, **checked}


def data_functions(name: str) -> list[Callable[..., Any]]:
    """What takes the arguments of a data block: the source and the splits.

    Raises:
        LimbeckError: unknown source.
    """
    from limbeck.data.load import source_function
    from limbeck.data.splits import Split

    return [source_function(name), Split]


def model_function(name: str) -> Callable[..., Any]:
    """What takes the arguments of a model block.

    Raises:
        LimbeckError: unknown model.
    """
    from limbeck.models.build import find

    return find(name)


def _names(kind: str) -> list[str]:
    return list(SOURCES) if kind == "data" else [*BUILDERS, *(METHODS if kind == "teacher" else ())]


def _options(function: Callable[..., Any], skip: Iterable[str] = ()) -> list[str]:
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in skip and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]


def _takes_anything(function: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def _refuse_unknown(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in values:
        if key not in known:
            raise LimbeckError(
                f"unknown key {where + str(key)!r}.{nearest(str(key), known)} Known here: {', '.join(known) or 'none'}"
            )


def _live(value: Any) -> bool:
    return value is not None and not isinstance(value, str | int | float | bool | Mapping | list | tuple)
