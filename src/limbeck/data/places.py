"""Where data lies: folders that the user names, the shared data folder and the cache."""

import os
from pathlib import Path

from limbeck.errors import LimbeckError, nearest


def existing(path: str | Path) -> Path:
    """A file or folder that must exist; ``~`` and variables such as ``$LIMBECK_DATA`` are filled in.

    Raises:
        LimbeckError: it does not exist, naming the deepest folder that does.
    """
    full = Path(os.path.expandvars(str(path))).expanduser()
    if "$" in str(full):
        raise LimbeckError(f"{path}: the environment variable in this path is not set")
    if full.exists():
        return full
    parent = full.absolute().parent
    while not parent.exists():
        parent = parent.parent
    missing = full.absolute().relative_to(parent).parts[0]
    hint = nearest(missing, [entry.name for entry in parent.iterdir()] if parent.is_dir() else [])
    raise LimbeckError(f"{full} does not exist: {parent} holds no {missing!r}.{hint}")


def holder(name: str) -> Path | None:
    """The folder directly below ``$LIMBECK_DATA`` that holds a folder called ``name``, where there is one."""
    shared = os.environ.get("LIMBECK_DATA")
    if not shared:
        return None
    return next((found.parent for found in sorted(existing(shared).glob(f"*/{name}")) if found.is_dir()), None)


def cache() -> Path:
    """Where unpacked data goes, made if need be: ``$LIMBECK_CACHE`` or ``~/.cache/limbeck``."""
    folder = Path(os.environ.get("LIMBECK_CACHE") or "~/.cache/limbeck").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
