"""iNaturalist as its competitions publish it: photographs of species with date and place."""

import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import torch

from limbeck.data.files import read_files
from limbeck.data.meta_encoding import encode_place, encode_time
from limbeck.data.meta_images import MetaSamples
from limbeck.data.places import existing
from limbeck.data.samples import Source
from limbeck.errors import LimbeckError

_DATE = re.compile(r"\s*(\d+)-(\d+)-(\d+)(?:[ T](\d+):)?")
Place = tuple[float, float]


def inaturalist(root: str, year: Literal[2017, 2018, 2021] = 2021, size: int | None = 224) -> Source:
    """A data set of iNaturalist with its own training and validation images, which are tested on.

    2021: ``train.json`` (or ``train_mini.json``) and ``val.json`` in the format of COCO, which hold date and place.
    2017 and 2018: ``trainYEAR.json``, ``valYEAR.json``, with date and place in ``trainYEAR_locations.json`` and
    ``valYEAR_locations.json``; 2018 names its species in ``categories.json``. Paths of images are relative to the root.
    ``meta`` is [sin, cos] of month and hour, then the place on the unit sphere (groups of sizes [4, 3]), zeros where
    they are not known: 2017 tells no hours.

    Differs from the released code of MetaFormer (arXiv 2203.02751): images and labels are matched by id, not by their
    order in the file, and a date without an hour keeps its month.

    Args:
        root: the folder; ``~`` and variables such as ``$INATURALIST`` are filled in.
        year: of the competition.
        size: the shorter side is resized to this many pixels and the centre square cut out; null keeps images as they
            are, which then must all have one size.

    Raises:
        LimbeckError: a file is missing or not what it should be, an image without a label, or of an unknown species.
    """
    top = existing(root)
    if year not in (2017, 2018, 2021):
        raise LimbeckError(f"inaturalist: year is {year}; it must be 2017, 2018 or 2021")
    mini = year == 2021 and not (top / "train.json").is_file() and (top / "train_mini.json").is_file()
    names = {2021: ("train_mini" if mini else "train", "val")}.get(year, (f"train{year}", f"val{year}"))
    train, test = (_read(top / f"{name}.json") for name in names)
    try:
        species = {int(row["id"]): str(row["name"]) for row in test["categories"]}
        if year == 2018:
            called = {int(row["id"]): str(row["name"]) for row in _read(top / "categories.json")}
            species = {number: called[int(name)] for number, name in species.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise LimbeckError(f"{top}: {names[1]}.json does not say what its categories are called: {error}") from None
    parts = [
        _part(top, listing, sorted(species), [species[number] for number in sorted(species)], size, where)
        for listing, where in (
            (train | {"locations": _locations(top, names[0], year)}, names[0]),
            (test | {"locations": _locations(top, names[1], year)}, names[1]),
        )
    ]
    return Source(parts[0], parts[1], flip=True)


def _read(path: Path) -> Any:
    try:
        return json.loads(existing(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise LimbeckError(f"{path} is not JSON: {error}") from None


def _locations(top: Path, name: str, year: int) -> dict[Any, Any] | None:
    if year == 2021:
        return None
    return {row["id"]: row for row in _read(top / f"{name}_locations.json")}


def _part(
    top: Path, listing: dict[str, Any], numbers: list[int], classes: list[str], size: int | None, where: str
) -> MetaSamples:
    try:
        labels = {row["image_id"]: int(row["category_id"]) for row in listing["annotations"]}
        images = [(row["id"], str(row["file_name"]), row) for row in listing["images"]]
    except (KeyError, TypeError) as error:
        raise LimbeckError(f"{top / where}.json has no {error} in its images or annotations") from None
    order = {number: place for place, number in enumerate(numbers)}
    without = [name for number, name, _ in images if labels.get(number) not in order]
    if without:
        raise LimbeckError(f"{top / where}.json: {len(without)} images have no known species, first {without[0]}")
    locations = listing["locations"]
    known = [row if locations is None else locations.get(number, {}) for number, _, row in images]
    when = torch.tensor([_when(row.get("date")) for row in known])
    place = torch.tensor([_where(row) for row in known])
    meta = torch.cat([encode_time(when[:, 0], when[:, 1]), encode_place(place[:, 0], place[:, 1])], dim=-1)
    pixels = read_files([top / name for _, name, _ in images], size, channels=3)
    return MetaSamples(meta, pixels, torch.tensor([order[labels[number]] for number, _, _ in images]), classes)


def _when(date: Any) -> Place:
    """Month and hour, NaN where they are not known."""
    found = _DATE.match(date) if isinstance(date, str) else None
    if found is None:
        return math.nan, math.nan
    return float(found[2]), math.nan if found[4] is None else float(found[4])


def _where(row: dict[str, Any]) -> Place:
    """Latitude and longitude in degrees, NaN where they are not known."""
    pair = (row.get("latitude", row.get("lat")), row.get("longitude", row.get("lon")))
    if not all(isinstance(value, int | float) for value in pair):
        return math.nan, math.nan
    return float(pair[0]), float(pair[1])  # type: ignore[arg-type]  # just checked
