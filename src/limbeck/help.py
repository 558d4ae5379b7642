"""``limbeck run METHOD --help``: every key of the recipe, from signatures and docstrings."""

import argparse
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import jsonargparse

from limbeck.catalogue import docstring
from limbeck.methods.index import METHODS
from limbeck.recipe import block_kinds, data_functions, method_class, model_function, read, resolve
from limbeck.stages.settings import FitSettings, optimizer_class


def print_help(verb: argparse.ArgumentParser, source: str) -> None:
    """Print what a method does and what each of its keys means, with the values of its recipe."""
    recipe = resolve(read(source))
    slug = recipe["method"]
    print(f"{slug}: {METHODS[slug].paper} (arXiv {METHODS[slug].arxiv})\n")
    print(docstring(slug) + "\n")
    for action in verb._actions:
        if action.option_strings:
            print(f"  {', '.join(action.option_strings):22}{action.help}")
    print()
    _section("", recipe)


def _section(prefix: str, recipe: Mapping[str, Any]) -> None:
    cls = method_class(recipe["method"])
    kinds = block_kinds(cls)
    _keys(f"{recipe['method']} itself", prefix, [cls], recipe, skip=set(kinds))
    for name, kind in kinds.items():
        block = recipe[name]
        where = f"{prefix}{name}"
        if kind == "teacher" and "method" in block:
            print(f"{where}: trained first, by the method {block['method']}; its keys are those of that method,")
            print(
                f"  such as --{where}.student.width; data and fit are those above unless set (--{where}.fit.epochs)\n"
            )
        elif kind == "fit":
            _keys(f"{where}: how it is trained", f"{where}.", [FitSettings], block)
            optimizer = optimizer_class(block["optimizer"]["name"])
            _keys(
                f"{where}.optimizer ({block['optimizer']['name']})",
                f"{where}.optimizer.",
                [optimizer],
                block["optimizer"],
                skip={"params"},
            )
        else:
            functions = data_functions(block["name"]) if kind == "data" else [model_function(block["name"])]
            print(f"--{where} NAME   which {kind} (now: {block['name']})")
            _keys(f"{where} ({block['name']})", f"{where}.", functions, block, skip={"task", "num_classes"})


def _keys(title: str, prefix: str, functions: list[Any], values: Mapping[str, Any], skip: Iterable[str] = ()) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False, usage=argparse.SUPPRESS)
    for function in functions:
        skipped = {*skip} & {*inspect.signature(function).parameters}
        add = parser.add_class_arguments if inspect.isclass(function) else parser.add_function_arguments
        add(function, skip={*skipped}, fail_untyped=False)
    print(f"{title}:")
    for action in parser._actions:
        if not action.option_strings:
            continue
        value = values.get(action.dest, action.default)
        text = " ".join((action.help or "").replace("%", "%%").split()) if isinstance(action.help, str) else ""
        print(f"  --{prefix}{action.dest} (now: {value})")
        if text and text != argparse.SUPPRESS:
            print(f"      {text}")
    print()
