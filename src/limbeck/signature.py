"""Values against a signature: which keys a function takes, of which types, with which defaults."""

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from limbeck.errors import LimbeckError, nearest


class UnknownKeyError(LimbeckError):
    """A key that nothing takes.

    Attributes:
        key: the dotted key.
    """

    def __init__(self, key: str, where: str, known: Iterable[str]) -> None:
        names = list(known)
        hint = nearest(key, names)
        # A path of keys (student.) goes before the key, a file or a claim before the sentence.
        self.key = where + key if where.endswith(".") else key
        place = "" if where.endswith(".") else where
        super().__init__(f"{place}unknown key {self.key!r}.{hint} Known here: {', '.join(names) or 'none'}")


def check(
    function: Callable[..., Any], values: Mapping[str, Any], where: str, skip: Iterable[str] = ()
) -> dict[str, Any]:
    """``values`` converted to the types of a signature, with its defaults.

    Args:
        function: a function, or a class for the signature of its constructor.
        values: what is passed by name.
        where: goes before a key in messages, as in ``student.``.
        skip: parameters that somebody else passes.

    Raises:
        LimbeckError: an unknown or missing key, or a value of the wrong type.
    """
    import jsonargparse

    taken = options(function, skip)
    if not takes_anything(function):
        refuse_unknown(values, taken, where)
    hints = type_hints(function)
    for key in taken:
        if key not in values:
            if inspect.signature(function).parameters[key].default is inspect.Parameter.empty:
                raise LimbeckError(f"{where}{key} is missing: it must be {type_name(hints.get(key))}")
        # jsonargparse lets None pass for every type.
        elif values[key] is None and key in hints and not _takes_none(hints[key]):
            raise _wrong_type(where + key, None, hints[key])
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    others = {*skip}
    skipped: set[str | int] = {name for name in inspect.signature(function).parameters if name in others}
    add = parser.add_class_arguments if inspect.isclass(function) else parser.add_function_arguments
    add(function, skip=skipped, fail_untyped=False)
    try:
        checked: dict[str, Any] = parser.parse_object({k: v for k, v in values.items() if k in taken}).as_dict()
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        named = re.search(r'[Kk]ey "(\w+)', str(error))
        if named and named[1] in values:
            raise _wrong_type(where + named[1], values[named[1]], hints.get(named[1])) from None
        raise LimbeckError(f"{where.rstrip('.') or 'the recipe'}: {' '.join(str(error).split())}") from None
    return {**{k: v for k, v in values.items() if k not in checked}, **checked}


def options(function: Callable[..., Any], skip: Iterable[str] = ()) -> list[str]:
    """Names of the parameters that can be passed by name."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in skip and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]


def takes_anything(function: Callable[..., Any]) -> bool:
    """Whether a function has ``**arguments``."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Types by parameter; of a class those of its constructor. Empty where they cannot be read."""
    try:
        return typing.get_type_hints(
            vars(function).get("__init__", function) if inspect.isclass(function) else function
        )
    except (NameError, TypeError):
        return {}


def type_name(hint: Any) -> str:
    """A type in the words of a recipe: ``int``, ``batch | group | none``, ``list of float, float``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        plain = [a for a in arguments if a is not type(None) and _is_plain(a)] or list(arguments)
        names = [type_name(a) for a in plain]
        return " | ".join([*names, "null"] if type(None) in arguments else names)
    if hint is None or hint is Any or hint is inspect.Parameter.empty:
        return "anything"
    if hint is type(None):
        return "null"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "mapping"
    if inspect.isclass(origin) and arguments:
        fixed = origin is tuple and arguments[-1] is not Ellipsis
        return f"list of {', '.join(map(type_name, arguments if fixed else arguments[:1]))}"
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return " | ".join(hint.__members__)
    names_of = {str: "text", bool: "true | false"}
    return names_of.get(hint, getattr(hint, "__name__", str(hint)))


def refuse_unknown(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Check that every key is known.

    Raises:
        UnknownKeyError: one is not; the message names the nearest match and what is known.
    """
    names = list(known)
    for key in values:
        if key not in names:
            raise UnknownKeyError(str(key), where, names)


def _wrong_type(key: str, value: Any, hint: Any) -> LimbeckError:
    shown = "null" if value is None else repr(value) if isinstance(value, str) else str(value)
    choices = [str(choice) for choice in typing.get_args(hint)] if typing.get_origin(hint) is typing.Literal else []
    return LimbeckError(
        f"{key} is {shown}; it must be {type_name(hint)}.{nearest(str(value), choices)}".removesuffix(".")
    )


def without_none(hint: Any) -> Any:
    """``X`` of a hint ``X | None``; any other hint as it is."""
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return parts[0] if _takes_none(hint) and len(parts) == 1 else hint


def _takes_none(hint: Any) -> bool:
    return hint in (None, type(None), Any) or type(None) in typing.get_args(hint)


def _is_plain(hint: Any) -> bool:
    """Whether YAML can write such a value (a tensor it cannot)."""
    return not inspect.isclass(hint) or hint.__module__ == "builtins" or issubclass(hint, enum.Enum)
