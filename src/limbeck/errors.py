"""Errors a user can cause, and the words that help to mend them."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class LimbeckError(Exception):
    """Something the user can put right: the message names what was wrong, where, and what would be right."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt ``word``: ``" Did you mean 'x'?"``, or an empty string when nothing is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library.

    Raises:
        LimbeckError: the library is not installed; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise LimbeckError(f"this needs {module}: pip install 'limbeck[{extra}]'") from None
