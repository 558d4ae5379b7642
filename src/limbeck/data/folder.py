"""Folders of image files, one folder a class."""

from pathlib import Path

import torch

from limbeck.data.files import channels_of, read_files
from limbeck.data.places import existing
from limbeck.data.samples import Samples, Source
from limbeck.data.splits import hold_out
from limbeck.errors import LimbeckError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
_VALIDATION_NAMES = ("validation", "val", "valid")

Listing = list[tuple[Path, int]]


def folder(root: str, size: int | None = 64, flip: bool = True) -> Source:
    """Image files in one folder a class.

    ``ROOT/train/CLASS/*`` and ``ROOT/test/CLASS/*``, or ``ROOT/CLASS/*``.
    ``ROOT/validation`` (or ``val``, ``valid``) is used where it exists. Without ``ROOT/test`` a fixed,
    stratified fifth is held out for testing, the same in every run.

    Args:
        root: the folder; ``~`` and variables such as ``$LIMBECK_DATA`` are filled in.
        size: the shorter side is resized to this many pixels and the centre square cut out; null keeps the
            images as they are, which then must all have one size.
        flip: whether a mirrored image is still an image of its class.

    Raises:
        LimbeckError: a folder is missing or a class empty, or a file cannot be read, with its name.
    """
    top = existing(root)
    if not top.is_dir():
        raise LimbeckError(f"{top} is a file, expected a folder with one folder a class")
    train_folder = top / "train" if (top / "train").is_dir() else top
    if train_folder is top and (top / "test").is_dir():
        raise LimbeckError(f"{top} holds the folder test, but no folder train")
    classes, train_files = _list(train_folder)
    listings: dict[str, Listing] = {"train": train_files}
    if train_folder is not top:
        validation = next((name for name in _VALIDATION_NAMES if (top / name).is_dir()), None)
        for part, name in (("test", "test"), ("validation", validation)):
            if name is not None and (top / name).is_dir():
                found, listings[part] = _list(top / name)
                if found != classes:
                    raise LimbeckError(f"{top / name} holds the classes {found}, {train_folder} holds {classes}")
    channels = channels_of([path for listing in listings.values() for path, _ in listing])
    parts = {
        name: Samples(
            read_files([path for path, _ in listing], size, channels),
            torch.tensor([label for _, label in listing]),
            classes,
        )
        for name, listing in listings.items()
    }
    if "test" not in parts:
        parts["train"], parts["test"] = hold_out(parts["train"], 0.2)
    return Source(parts["train"], parts["test"], parts.get("validation"), flip)


def _list(top: Path) -> tuple[list[str], Listing]:
    classes = sorted(entry.name for entry in top.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise LimbeckError(f"{top} holds no folders; expected one folder a class, with image files in it")
    listing: Listing = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (top / name).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not files:
            kinds = " ".join(sorted(SUFFIXES))
            raise LimbeckError(f"{top / name}: the class folder holds no images ({kinds}); fill or remove it")
        listing += [(path, label) for path in files]
    return classes, listing
