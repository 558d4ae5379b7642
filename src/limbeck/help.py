"""``limbeck run METHOD --help``: every key of the recipe, from signatures and docstrings."""

import argparse
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import jsonargparse

from limbeck.catalogue import docstring
from limbeck.methods.index import METHODS
from limbeck.recipe import SWITCHES, block_kinds, data_functions, live, method_class, model_function
from limbeck.show import prose, width
from limbeck.signature import options, type_hints, type_name
from limbeck.stages.settings import FitSettings, optimizer_class, schedule_function


def print_help(verb: argparse.ArgumentParser, recipe: Mapping[str, Any]) -> None:
    """Print what a method does and what each key of its recipe means.

    Args:
        verb: the verb's own options.
        recipe: a resolved recipe; its values are shown.
    """
    slug = recipe["method"]
    paper = METHODS[slug]
    print(prose(f"limbeck run {slug}: {paper.paper} (arXiv {paper.arxiv}, {paper.year})") + "\n")
    print(prose(docstring(slug).partition("\nArgs:")[0]) + "\n")
    print("OPTIONS")
    for action in verb._actions:
        if action.option_strings:
            value = f" {action.metavar or action.dest.upper()}" if action.nargs != 0 else ""
            _entry(action.option_strings[-1] + value, "", str(action.help))
    print("\nKEYS OF THE RECIPE, each with its type, its value now and its meaning")
    _method("", recipe)


def _method(prefix: str, recipe: Mapping[str, Any]) -> None:
    cls = method_class(recipe["method"])
    kinds = block_kinds(cls)
    _heading(f"{recipe['method']}: the method")
    _keys(prefix, cls, recipe, skip=set(kinds))
    for name, kind in kinds.items():
        _block(kind, f"{prefix}{name}", recipe[name], recipe)


def _block(kind: str, where: str, block: Any, outer: Mapping[str, Any]) -> None:
    if block is None:
        _heading(f"{where}: not used unless it is given")
        _entry(f"--{where} NAME", "now null", f"which {kind}")
    elif live(block):
        _heading(f"{where}: a {type(block).__name__} made in Python")
    elif kind == "teacher" and "method" in block:
        _teacher(where, block, outer)
    elif kind == "fit":
        _heading(f"{where}: how the model is trained")
        _keys(f"{where}.", FitSettings, block, skip=("optimizer", "schedule"))
        for part, find in (("optimizer", optimizer_class), ("schedule", schedule_function)):
            _choice(f"{where}.{part}", block[part], part)
            _keys(f"{where}.{part}.", find(block[part]["name"]), block[part], skip={"params", *SWITCHES})
    else:
        _choice(where, block, {"data": "data source"}.get(kind, kind))
        for function in data_functions(block["name"]) if kind == "data" else [model_function(block["name"])]:
            _keys(f"{where}.", function, block, skip={"task", "num_classes"} if kind != "data" else ())


def _teacher(where: str, block: Mapping[str, Any], outer: Mapping[str, Any]) -> None:
    """A teacher that a method trains: its keys are those of that method, so only what it sets is shown."""
    _heading(f"{where}: a model, or a method that trains one first")
    meaning = "which method, which model, or the folder of a trained model"
    _entry(f"--{where} NAME", f"now the method {block['method']}", meaning)
    differs = _differing(block, outer)
    for key, value in differs.items():
        _entry(f"--{where}.{key}", f"now {_shown(value)}", "")
    text = (
        f"Every other key of 'limbeck run {block['method']} --help' too, with --{where} before it, as in "
        f"--{where}.fit.epochs; "
        "its data and fit are those of the student unless set."
    )
    print(textwrap.fill(text, width(), initial_indent="  ", subsequent_indent="  "))


def _differing(block: Mapping[str, Any], outer: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What a nested method has of its own: everything but data and fit as they are outside."""
    found: dict[str, Any] = {}
    for key, value in block.items():
        if key == "method" or (key in outer and value == outer[key] and prefix[:4] in ("data", "fit.")):
            continue
        if isinstance(value, Mapping):
            beside = outer.get(key, {})
            found |= _differing(value, beside if isinstance(beside, Mapping) else {}, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _choice(where: str, block: Mapping[str, Any], kind: str) -> None:
    _heading(f"{where}: {block['name']}")
    _entry(f"--{where} NAME", f"now {block['name']}", f"which {kind}; another one has other keys")


def _heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def _keys(prefix: str, function: Any, values: Mapping[str, Any], skip: Iterable[str] = ()) -> None:
    hints = type_hints(function)
    meanings = _meanings(function)
    for name in options(function, skip):
        default = inspect.signature(function).parameters[name].default
        value = values.get(name, None if default is inspect.Parameter.empty else default)
        _entry(f"--{prefix}{name} {type_name(hints.get(name))}", f"now {_shown(value)}", meanings.get(name, ""))


def _meanings(function: Any) -> dict[str, str]:
    """What the docstring says about each parameter."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    add = parser.add_class_arguments if inspect.isclass(function) else parser.add_function_arguments
    add(function, fail_untyped=False)
    return {action.dest: action.help for action in parser._actions if isinstance(action.help, str)}


def _entry(left: str, now: str, meaning: str) -> None:
    column = 46
    line = f"  {left}{' ' * max(2, column - len(left))}{now}".rstrip()
    if len(line) <= width():
        print(line)
    else:
        for part, indent in ((left, "  "), (now, "      ")):
            print(textwrap.fill(part, width(), initial_indent=indent, subsequent_indent="      "))
    text = " ".join(meaning.replace("``", "").split())
    if text:
        print(textwrap.fill(text, width(), initial_indent="      ", subsequent_indent="      ", break_long_words=False))


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(part)}" for key, part in value.items()) + "}"
    return "[" + ", ".join(map(_shown, value)) + "]" if isinstance(value, list | tuple) else str(value)
