"""Image data sets of the Hugging Face hub, and local files in its formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from limbeck.data.files import fit
from limbeck.data.pixels import read, to_pixels
from limbeck.data.places import existing
from limbeck.data.samples import Samples, Source, check_labels
from limbeck.data.splits import hold_out
from limbeck.errors import LimbeckError, nearest, require

_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv"}
_VALIDATION_NAMES = ("validation", "val", "valid")


def huggingface(
    path: str,
    files: dict[str, str] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    train_split: str = "train",
    test_split: str = "test",
    size: int | None = None,
    flip: bool = True,
) -> Source:
    """An image data set of the Hugging Face hub, or local parquet, arrow, csv or image files.

    A split called ``validation`` (or ``val``, ``valid``) is used where it exists. Without the test split a
    fixed, stratified fifth is held out for testing, the same in every run.

    Args:
        path: a name on the hub; or a local folder with files named after their splits (``train.parquet``,
            ``test.parquet`` ...), with folders of images, or written by ``save_to_disk``; or, with ``files``,
            the
            format: parquet, arrow, csv or imagefolder.
        files: split -> file, where the files are not found by their names.
        image_column: the column of the images, encoded or as paths.
        label_column: the column of the labels: class numbers or names.
        train_split: the split to train on.
        test_split: the split to test on.
        size: the shorter side is resized to this many pixels and the centre square cut out; null keeps the
            images as they are, which then must all have one size.
        flip: whether a mirrored image is still an image of its class.

    Raises:
        LimbeckError: the data set, a split or a column is missing, or an image cannot be decoded.
    """
    splits = _open(path, files)
    if train_split not in splits:
        raise LimbeckError(
            f"{path} has no split {train_split!r}; it has {', '.join(splits)}.{nearest(train_split, splits)}"
        )
    if test_split != "test" and test_split not in splits:
        raise LimbeckError(
            f"{path} has no split {test_split!r}; it has {', '.join(splits)}.{nearest(test_split, splits)}"
        )
    validation = next((name for name in _VALIDATION_NAMES if name in splits), None)
    names = {"train": train_split, "test": test_split, "validation": validation}
    tables = {part: splits[name] for part, name in names.items() if name is not None and name in splits}
    for part, table in tables.items():
        for column in (image_column, label_column):
            if column not in table.column_names:
                known = table.column_names
                raise LimbeckError(
                    f"{path}, {names[part]}: no column {column!r}; known: {', '.join(known)}.{nearest(column, known)}"
                )
    classes, number = _classes(tables["train"], label_column)
    parts = {
        part: _samples(table, image_column, label_column, classes, number, size, f"{path}, {names[part]}")
        for part, table in tables.items()
    }
    if "test" not in parts:
        parts["train"], parts["test"] = hold_out(parts["train"], 0.2)
    return Source(parts["train"], parts["test"], parts.get("validation"), flip)


def _open(path: str, files: dict[str, str] | None) -> dict[str, Any]:
    datasets = require("datasets", extra="datasets")
    try:
        if files is not None:
            known = [*_FORMATS.values(), "imagefolder"]
            if path not in known:
                raise LimbeckError(f"files are given, so path must be one of {', '.join(known)}, not {path!r}")
            found = {split: str(existing(file)) for split, file in files.items()}
            return dict(datasets.load_dataset(path, data_files=found))
        if Path(path).is_absolute() or path[0] in "~$." or Path(path).is_dir():
            return _open_folder(datasets, existing(path))
        return dict(datasets.load_dataset(path))
    except LimbeckError:
        raise
    except Exception as error:  # the library passes on whatever its formats and the network raise
        raise LimbeckError(f"{path}: the data set cannot be opened ({type(error).__name__}: {error})") from error


def _open_folder(datasets: Any, folder: Path) -> dict[str, Any]:
    if (folder / "dataset_dict.json").is_file():
        return dict(datasets.load_from_disk(str(folder)))
    for suffix, kind in _FORMATS.items():
        found: dict[str, list[str]] = {}
        for file in sorted(folder.glob(f"*{suffix}")):
            # train.parquet, and the pieces train-00000-of-00002.parquet of a large one
            found.setdefault(file.stem.split("-")[0], []).append(str(file))
        if found:
            return dict(datasets.load_dataset(kind, data_files=found))
    return dict(datasets.load_dataset("imagefolder", data_dir=str(folder)))


def _classes(table: Any, column: str) -> tuple[list[str], Callable[[Any], int]]:
    """The names of the classes, and what turns an entry of the column into a class number."""
    names = getattr(table.features[column], "names", None)
    if names:
        return list(names), int
    entries = table.unique(column)
    if all(isinstance(entry, int) for entry in entries):
        return [str(number) for number in range(max(entries) + 1)], int
    if all(isinstance(entry, str) for entry in entries):
        ordered = sorted(entries)
        numbers = {name: number for number, name in enumerate(ordered)}
        return ordered, lambda name: numbers.get(name, len(numbers))  # an unknown name is then out of range
    raise LimbeckError(f"column {column!r}: labels must be class numbers or names, not {entries[:3]}")


class _Decode:
    """Row -> image of a table as a tensor; a class, since workers may have to pickle it."""

    def __init__(self, images: Any, column: str, size: int | None, where: str) -> None:
        self.images, self.column, self.size, self.where = images, column, size, where

    def name(self, row: int) -> str:
        return f"{self.where}, index {row}"

    def __call__(self, row: int) -> Tensor:
        try:
            image = self.images[row][self.column]
            if isinstance(image, Image.Image):
                image = fit(image, self.size, self.name(row))
        except (OSError, SyntaxError, ValueError) as error:
            raise LimbeckError(f"{self.name(row)}: the image cannot be decoded ({error})") from error
        return to_pixels(image, self.name(row))


def _samples(
    table: Any,
    image_column: str,
    label_column: str,
    classes: list[str],
    number: Callable[[Any], int],
    size: int | None,
    where: str,
) -> Samples:
    datasets = require("datasets", extra="datasets")
    labels = torch.empty(len(table), dtype=torch.int64)
    for row, entry in enumerate(table[label_column]):
        try:
            labels[row] = number(entry)
        except (TypeError, ValueError):
            raise LimbeckError(f"{where}, index {row}: label {entry!r} is no class") from None
    check_labels(labels, classes, where)
    images = table.select_columns([image_column])
    if not isinstance(images.features[image_column], datasets.Image):
        images = images.cast_column(image_column, datasets.Image())
    decode = _Decode(images, image_column, size, where)
    return Samples(read(decode, len(labels), decode.name), labels, classes)
