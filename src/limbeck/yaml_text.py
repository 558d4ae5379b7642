"""YAML as recipes are written in: 1e-3 is a number, and a key stands once."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from limbeck.errors import LimbeckError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but with 1e-3 a number and without keys given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping; PyYAML itself would silently let the last of two equal keys win."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            if isinstance(key.value, str) and key.value != "<<":
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def parse_value(text: str) -> Any:
    """The value that ``text`` means in a recipe; text that is not YAML means itself."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def read_yaml(text: str, name: str) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        LimbeckError: not YAML, a key that stands twice, or not a mapping.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise LimbeckError(f"{name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise LimbeckError(f"{name} must be a mapping of keys to values, it is {type(value).__name__}")
    return value
