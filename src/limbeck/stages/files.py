"""Files that are either whole or absent: nothing finished is lost to a crash or a full disk."""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError

ORPHANS = 15.0
"""Seconds for which the workers of a killed run may hold its folder: they notice its end every five."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill ``PATH.part``, flush it to the disk, then put it in place of ``path`` in one move.

    Raises:
        LimbeckError: the disk is full or not writable; what stood at ``path`` before is untouched.
    """
    part = path.with_name(path.name + ".part")
    with saving(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(part)
            with part.open("rb") as handle:
                os.fsync(handle.fileno())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Explain a disk that is full or not writable.

    Raises:
        LimbeckError: in place of such an OSError; others pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise
        raise LimbeckError(
            f"cannot save {path}: {os.strerror(error.errno)}; what was saved before is intact. "
            "Make room (or choose another --out) and give the same command again: it continues."
        ) from error


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with a final newline."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process.

    Raises:
        LimbeckError: another process is running in it.
    """
    import fcntl

    lock = folder / ".lock"
    with saving(lock):
        folder.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a+", encoding="utf-8")
    with handle:
        deadline = time.monotonic() + ORPHANS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                handle.seek(0)
                owner = handle.read().strip()
                if _alive(owner) or time.monotonic() > deadline:
                    raise LimbeckError(
                        f"{folder} is in use by another run (process {owner or 'unknown'}); "
                        "wait for it, or choose another --name"
                    ) from None
                time.sleep(0.1)
        with saving(lock):
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
        yield


def _alive(process: str) -> bool:
    return not process or Path("/proc", process).exists() or not Path("/proc/self").exists()
