"""Recipes: YAML that configures a method, checked against the signatures of what it names.

A recipe is a mapping of a method's arguments. Some of them are blocks: a model, a teacher (a model or
another method), the data, the settings of a fit. A block names what it configures (``name: cnn``) and gives
its arguments beside; ``student: cnn`` is short for ``student: {name: cnn}``. A teacher that is a method
inherits the data and the fit of the method it teaches, except for what it sets itself.
"""

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from limbeck.data.index import SOURCES
from limbeck.errors import LimbeckError, nearest
from limbeck.methods.index import METHODS
from limbeck.models.index import BUILDERS
from limbeck.signature import check, options, refuse_unknown, takes_anything, without_none
from limbeck.yaml_text import parse_value as parse_value
from limbeck.yaml_text import read_yaml as read_yaml

Recipe = dict[str, Any]

_KINDS = {"model": "a model", "teacher": "a teacher", "data": "a data source"}
SWITCHES = frozenset({"maximize", "foreach", "differentiable", "fused", "capturable", "decoupled_weight_decay"})
"""How an optimiser of torch computes, not what: accepted in a recipe, but not written out."""


def read(source: str | Path, which: str = "small") -> Recipe:
    """The recipe of a slug (``small`` or ``paper``), of a YAML file, or of a run folder.

    Raises:
        LimbeckError: no such slug, recipe or file, or a file that is not a mapping.
    """
    name = str(source)
    if name in METHODS:
        folder = resources.files("limbeck") / "recipes" / name
        file = folder / f"{which}.yaml"
        if not file.is_file():
            there = sorted({f.name.removesuffix(".yaml") for f in folder.iterdir()} - {"claim", "finding"})
            raise LimbeckError(f"{name} has no recipe {which!r}.{nearest(which, there)} There are: {', '.join(there)}")
        return read_yaml(file.read_text(encoding="utf-8"), f"{name}/{which}.yaml")
    path = Path(name)
    if path.is_dir():
        found = [path / "recipe.yaml", *sorted(path.glob("seed-*/recipe.yaml"))]
        path = next((file for file in found if file.is_file()), path)
        if path.is_dir():
            raise LimbeckError(f"the folder {path} holds no recipe.yaml: it is not a run folder")
    if path.suffix not in (".yaml", ".yml"):
        known = ", ".join(METHODS)
        raise LimbeckError(f"unknown method {name!r}.{nearest(name, METHODS)} Give one of: {known}, or a file .yaml")
    return read_yaml(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        LimbeckError: no such file (with the nearest one beside it), or not a text file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise LimbeckError(f"there is no file {path}." + nearest(path.name, beside)) from None
    except UnicodeDecodeError:
        raise LimbeckError(f"{path} is not a text file in UTF-8") from None


def nest(dotted: Mapping[str, Any]) -> Recipe:
    """``{"fit.optimizer.lr": 0.1}`` as nested mappings; a bare name beside dotted keys names the block.

    Raises:
        LimbeckError: a key below a live object, such as ``student.width`` beside a ``student`` that is a module.
    """
    nested: Recipe = {}
    for key, value in dotted.items():
        *path, last = key.split(".")
        block = nested
        for part in path:
            block[part] = _opened(part, block.get(part), key)
            block = block[part]
        before = block.get(last)
        if isinstance(before, Mapping) and value is not None:
            block[last] = overlay(_opened(last, value, f"{key}.{next(iter(before), '')}"), before, last)
        else:
            block[last] = _copy(value)
    return nested


def _opened(part: str, value: Any, key: str) -> Recipe:
    """What stands at ``part`` as a block that further keys go into."""
    if live(value):
        raise LimbeckError(f"{key} cannot be set: {part} is given as a {type(value).__name__} made in Python")
    if isinstance(value, Mapping):
        return _copy(value)
    return {} if value is None else _named(part, value)


def _copy(value: Any) -> Any:
    return {key: _copy(part) for key, part in value.items()} if isinstance(value, Mapping) else value


def overlay(base: Any, over: Any, key: str = "") -> Any:
    """``over`` laid upon ``base``, block by block; neither is changed.

    A block that gets another name starts anew: the arguments of the old one do not carry over. Nor do the keys by
    which a nested method changed the data of ``base``, where ``over`` gives data made in Python: they have no keys.
    """
    if isinstance(base, Mapping) and isinstance(over, str):
        over = _named(key, over)
    if isinstance(base, str) and isinstance(over, Mapping):
        base = _named(key, base)
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return _copy(over)
    if None not in (_identity(base), _identity(over)) and _identity(base) != _identity(over):
        return _copy(over)
    merged = _copy(base)
    for part, value in over.items():
        merged[part] = overlay(base[part], value, part) if part in base else _copy(value)
    if "epochs" in over and "updates" not in over and "updates" in base:
        merged["updates"] = None  # a fit has one length, and the later word counts
    if live(over.get("data")):
        for part, block in merged.items():
            own = isinstance(over.get(part), Mapping) and "data" in over[part]
            if isinstance(block, dict) and "method" in block and not own and _changes_data(block):
                del block["data"]
    return merged


def _changes_data(block: Mapping[str, Any]) -> bool:
    """Whether a nested method takes the data around it with some keys changed."""
    return isinstance(block.get("data"), Mapping) and "name" not in block["data"]


def _identity(block: Mapping[str, Any]) -> tuple[str, Any] | None:
    """What a block configures: a method, or what its name says."""
    return next(((kind, block[kind]) for kind in ("method", "name") if kind in block), None)


def _named(key: str, value: Any) -> Recipe:
    """The block that a bare name stands for."""
    if key == "teacher" and isinstance(value, str) and value in METHODS:
        return {"method": value}
    if key in ("student", "teacher") and isinstance(value, str) and value not in BUILDERS:
        # A folder of a saved model; of a hub there is no file to look for.
        if value.startswith("hf://"):
            return {"name": "hub", "repo": value.removeprefix("hf://")}
        if (Path(value) / "config.json").is_file():
            return {"name": "folder", "path": value}
    return {"name": value}


def method_class(slug: str) -> type:
    """The class of a method.

    Raises:
        LimbeckError: unknown slug.
    """
    if not isinstance(slug, str) or slug not in METHODS:
        raise LimbeckError(f"unknown method {slug!r}.{nearest(str(slug), METHODS)} Known: {', '.join(METHODS)}")
    module, _, name = METHODS[slug].path.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


def block_kinds(cls: type) -> dict[str, str]:
    """Which arguments of a method are blocks: name -> model, teacher, data or fit."""
    from limbeck.data.data import Data
    from limbeck.methods.method import Method
    from limbeck.models.model import Model
    from limbeck.stages.objective import Objective
    from limbeck.stages.settings import FitSettings
    from limbeck.teachers.frozen import Frozen

    kinds = {Model: "model", Frozen: "teacher", Data: "data", FitSettings: "fit"}
    found = {}
    for name, hint in typing.get_type_hints(vars(cls)["__init__"]).items():
        wanted = without_none(hint)
        kind = next((k for base, k in kinds.items() if isinstance(wanted, type) and issubclass(wanted, base)), None)
        if wanted is Method:  # what a method of several stages is handed: its teacher's stages are yet to run
            kind = "teacher"
        if kind is not None:
            found[name] = kind
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
        raise LimbeckError(f"{where.rstrip('.') or 'the recipe'} names no method; add a line 'method: SLUG'")
    cls = method_class(recipe["method"])
    kinds = block_kinds(cls)
    base = {"data": {"name": "digits"}, **(inherited or {})}
    refuse_unknown(recipe, ["method", *options(cls, kinds), *kinds], where)
    own = {key: value for key, value in recipe.items() if key != "method" and key not in kinds}
    resolved: Recipe = {"method": recipe["method"], **check(cls, own, where, skip=kinds)}
    order = sorted(kinds.items(), key=lambda item: ("data", "model", "fit", "teacher").index(item[1]))
    for name, kind in order:
        value = recipe.get(name)
        if kind == "fit" and not (value is None or live(value) or isinstance(value, Mapping)):
            raise LimbeckError(f"{where}{name} is {value!r}; it must be a mapping, such as {{epochs: 5}}")
        if kind in ("data", "fit") and not live(value):
            value = _inherit(base.get(name, {}), value, name, where)
        parameter = inspect.signature(cls).parameters.get(name)
        if value is None and parameter is not None and parameter.default is None:
            resolved[name] = None  # the method can do without it
            continue
        if value is None:
            raise LimbeckError(f"{where}{name} is missing: {recipe['method']} needs a {kind} there")
        resolved[name] = value if live(value) else _resolve_block(kind, name, value, where + name, resolved)
    return resolved


def _inherit(base: Any, value: Any, name: str, where: str) -> Any:
    if value is None:
        return base
    if live(base) and isinstance(value, Mapping):
        key = next(iter(value), "")
        raise LimbeckError(
            f"{where}{name}.{key} cannot be set: {name} is given as a {type(base).__name__} made in Python; "
            f"pass **{{{where + name!r}: ...}} as well"
        )
    return overlay(base, value, name)


def _resolve_block(kind: str, name: str, value: Any, path: str, outer: Recipe) -> Recipe:
    if kind == "fit":
        return _resolve_fit(value, f"{path}.")
    if not isinstance(value, str | Mapping):
        raise LimbeckError(f"{path} is {value!r}; it must name {_KINDS[kind]}, or be a mapping with a name")
    block = dict(value) if isinstance(value, Mapping) else _named("student" if kind == "model" else name, value)
    if "object" in block:
        raise LimbeckError(f"{path} was a {block['object']} made in Python; pass it again as {path}=")
    if kind == "teacher" and "method" in block:
        return resolve(block, {key: outer[key] for key in ("data", "fit") if key in outer}, f"{path}.")
    known = list(SOURCES) if kind == "data" else [*BUILDERS, *(METHODS if kind == "teacher" else ())]
    if "name" not in block:
        raise LimbeckError(f"{path}.name is missing: which {kind}? Known: {', '.join(known)}")
    named = block.pop("name")
    if not isinstance(named, str):
        raise LimbeckError(f"{path}.name is {named!r}; it must name {_KINDS[kind]}. Known: {', '.join(known)}")
    if kind == "data":
        functions, skip = data_functions(named), {"seed"}
    else:
        _refuse_no_model(kind, named, path, known)
        functions, skip = [model_function(named)], {"task", "num_classes"}
    if not any(takes_anything(function) for function in functions):
        refuse_unknown(block, [o for function in functions for o in options(function, skip)], f"{path}.")
    checked: Recipe = {"name": named}
    taken = {option for function in functions[1:] for option in options(function, skip)}
    for number, function in enumerate(functions):
        mine = options(function, skip)
        # What no signature names goes to the first, which takes anything.
        rest = {k: v for k, v in block.items() if k in mine or (number == 0 and k not in taken)}
        checked |= check(function, rest, f"{path}.", skip=skip)
    return checked


def _refuse_no_model(kind: str, name: str, path: str, known: list[str]) -> None:
    if name in BUILDERS:
        return
    if "/" in name or Path(name).is_dir():
        models = sorted(Path(name).glob("**/model/config.json"))
        hint = f"; there is one in {models[0].parent}" if models else " (config.json and model.safetensors)"
        raise LimbeckError(f"{path}: the folder {name} holds no saved model{hint}")
    if "." not in name:
        what = "a folder of a saved model, or package.module.Class of your own"
        raise LimbeckError(f"{path}: unknown {kind} {name!r}.{nearest(name, known)} Known: {', '.join(known)}, {what}")


def _resolve_fit(block: Mapping[str, Any], where: str) -> Recipe:
    from limbeck.stages.settings import FitSettings, optimizer_class, schedule_function

    checked = check(FitSettings, {k: v for k, v in block.items() if k not in ("optimizer", "schedule")}, where)
    for key, find in (("optimizer", optimizer_class), ("schedule", schedule_function)):
        part = overlay(checked[key], block.get(key, {}), key)
        if not isinstance(part, Mapping) or not isinstance(part.get("name"), str):
            raise LimbeckError(f"{where}{key} is {part!r}; it must be a name, or a mapping with a name")
        arguments = {k: v for k, v in part.items() if k != "name"}
        values = check(find(part["name"]), arguments, f"{where}{key}.", skip={"params"})
        checked[key] = {"name": part["name"]} | {
            k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if k in arguments or k not in SWITCHES
        }
    try:
        FitSettings(**checked)  # refuses now what would be refused once the data are read
    except LimbeckError as error:
        raise LimbeckError(str(error).replace("fit.", where)) from None
    return checked


def data_functions(name: str) -> list[Callable[..., Any]]:
    """What takes the arguments of a data block: the source, and the splits unless it makes its own.

    Raises:
        LimbeckError: unknown source.
    """
    from limbeck.data.load import makes_splits, source_function
    from limbeck.data.splits import Split

    source = source_function(name)
    return [source] if makes_splits(source) else [source, Split]


def model_function(name: str) -> Callable[..., Any]:
    """What takes the arguments of a model block.

    Raises:
        LimbeckError: unknown model.
    """
    from limbeck.models.build import find

    return find(name)


def live(value: Any) -> bool:
    """Whether a value is an object of a Python program, not data that a file can hold."""
    return value is not None and not isinstance(value, str | int | float | bool | Mapping | list | tuple)
