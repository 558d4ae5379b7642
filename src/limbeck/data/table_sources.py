"""Where tables come from: UCI's Adult and MAGIC, and one that comes with scikit-learn."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.data.bags import BagData, Grouping, into_bags
from limbeck.data.places import cache, existing
from limbeck.data.random import derive, permutation
from limbeck.data.rows import Rows
from limbeck.errors import LimbeckError, nearest, require

ADULT = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"),
    *("race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"),
)
"""The columns of adult.data, which has no header."""

ADULT_ROWS = 32561
"""The lines of adult.data."""

MAGIC = ("Length", "Width", "Size", "Conc", "Conc1", "Asym", "M3Long", "M3Trans", "Alpha", "Dist", "class")
"""The columns of MAGIC's files, in their order."""


class Table(NamedTuple):
    """Columns as they were read, and who is positive.

    Attributes:
        columns: name -> float64 [N], or words [N] of a category.
        positive: bool [N].
        classes: the names of the negative and the positive class.
    """

    columns: dict[str, NDArray[np.generic]]
    positive: NDArray[np.bool_]
    classes: tuple[str, str]


def adult(
    seed: int,
    root: str | None = None,
    bag_size: int = 8,
    bags: Grouping = "random",
    feature: str | None = None,
    train_size: int | None = None,
    validation: float | int = 0.1,
) -> BagData:
    """UCI Adult (census income): 32,561 rows, 6 numbers and 8 categories, 24% above 50,000 dollars, in bags.

    Becker and Kohavi 1996, archive.ics.uci.edu/dataset/2. A fixed fifth of adult.data is the test split, the same in
    every run. Categories become columns of zeros and ones; a missing value (?) is a category of its own.

    Args:
        seed: of the run; decides validation, train_size and bags.
        root: folder that holds adult.data. Where not given $LIMBECK_DATA/adult; where that does not exist the same rows
            are downloaded from OpenML (number 1590) into the cache folder.
        bag_size: training rows a bag.
        bags: which rows make a bag: random ones, or those alike in a feature.
        feature: the column that orders the rows into bags by feature, such as age or occupation.
        train_size: number of training rows; null keeps all.
        validation: fraction (below 1) or number (from 1 on) of rows with labels that are held out.

    Raises:
        LimbeckError: the file is missing and cannot be downloaded or is not what it should be, or an option is out of
            range.
    """
    folder = _folder(root, "adult")
    # OpenML has adult.test before adult.data.
    rows = _download(1590, "adult", ADULT)[-ADULT_ROWS:] if folder is None else _read(folder / "adult.data", ADULT)
    table = _table(rows, ADULT, positive=">50K", negative="<=50K")
    return _split(table, None, seed, bag_size, bags, feature, train_size, validation)


def magic(
    seed: int,
    root: str | None = None,
    bag_size: int = 8,
    bags: Grouping = "random",
    feature: str | None = None,
    train_size: int | None = None,
    validation: float | int = 0.1,
) -> BagData:
    """MAGIC gamma telescope: 10 numbers of a shower, from a hadron (h) or a gamma ray (g, positive), in bags.

    Bock 2004, archive.ics.uci.edu/dataset/159, as train.csv and test.csv with a header; the last column is the class.

    Args:
        seed: of the run; decides validation, train_size and bags.
        root: folder that holds train.csv and test.csv. Where not given $LIMBECK_DATA/magic; where that does not exist
            all rows are downloaded from OpenML (number 1120) into the cache folder, a fixed fifth as the test split.
        bag_size: training rows a bag.
        bags: which rows make a bag: random ones, or those alike in a feature.
        feature: the column that orders the rows into bags by feature, such as Length.
        train_size: number of training rows; null keeps all.
        validation: fraction (below 1) or number (from 1 on) of rows with labels that are held out.

    Raises:
        LimbeckError: a file is missing and cannot be downloaded or is not what it should be, or an option is out of
            range.
    """
    folder = _folder(root, "magic")
    if folder is None:
        train, test = _table(_download(1120, "magic", MAGIC), MAGIC, positive="g", negative="h"), None
    else:
        files = [_read(folder / name) for name in ("train.csv", "test.csv")]
        train, test = (_table(rows, header, positive="g", negative="h") for header, *rows in files)
    return _split(train, test, seed, bag_size, bags, feature, train_size, validation)


def breast_cancer(
    seed: int,
    bag_size: int = 8,
    bags: Grouping = "random",
    feature: str | None = None,
    train_size: int | None = None,
    validation: float | int = 0.2,
) -> BagData:
    """Breast cancer Wisconsin, shipped with scikit-learn: 569 rows of 30 numbers, malignant or benign, in bags.

    A fixed fifth is the test split. Wolberg et al. 1995, archive.ics.uci.edu/dataset/17.

    Args:
        seed: of the run; decides validation, train_size and bags.
        bag_size: training rows a bag.
        bags: which rows make a bag: random ones, or those alike in a feature.
        feature: the column that orders the rows into bags by feature, such as "mean radius".
        train_size: number of training rows; null keeps all.
        validation: fraction (below 1) or number (from 1 on) of rows with labels that are held out.

    Raises:
        LimbeckError: an option is out of range.
    """
    bunch = require("sklearn.datasets", extra="all").load_breast_cancer()
    columns = {str(name): bunch.data[:, number] for number, name in enumerate(bunch.feature_names)}
    classes = (str(bunch.target_names[0]), str(bunch.target_names[1]))
    table = Table(columns, bunch.target == 1, classes)
    return _split(table, None, seed, bag_size, bags, feature, train_size, validation)


def _folder(root: str | None, name: str) -> Path | None:
    """Where a table lies: the folder that is given, else ``name`` below $LIMBECK_DATA; None where it is in neither."""
    shared = os.environ.get("LIMBECK_DATA")
    if root is None and not (shared and (existing(shared) / name).is_dir()):
        return None
    return Path(root or f"$LIMBECK_DATA/{name}")


def _download(number: int, name: str, header: Sequence[str]) -> list[tuple[str | float, ...]]:
    """The lines of a data set of OpenML as its file would hold them, each as long as the header, the class last."""
    datasets = require("sklearn.datasets", extra="all")
    try:
        # Without pandas: categories come as numbers, NaN where missing.
        how = {"data_home": str(cache()), "as_frame": False, "parser": "liac-arff", "n_retries": 1}
        found = datasets.fetch_openml(data_id=number, **how)
    except (OSError, ValueError) as error:  # no network, no answer, or not the whole file
        raise LimbeckError(
            f"{name} is not in $LIMBECK_DATA and cannot be downloaded from OpenML, number {number} ({error}); "
            "data.root names the folder that holds it"
        ) from error
    columns: list[list[str | float]] = []
    for column in header[:-1]:
        # OpenML's MAGIC has fLength: for Length.
        given = next((n for n in found.feature_names if n in (column, f"f{column}:")), None)
        if given is None:
            raise LimbeckError(f"OpenML's data set {number} has no {column!r}; it has {', '.join(found.feature_names)}")
        values, words = found.data[:, found.feature_names.index(given)].tolist(), found.categories.get(given)
        columns.append(values if words is None else ["?" if np.isnan(v) else words[int(v)] for v in values])
    return list(zip(*columns, found.target.tolist(), strict=True))


def _read(path: Path, header: Sequence[str] | None = None) -> list[list[str]]:
    """The lines of a file of comma-separated values; all of them as long as the header, the first one by default."""
    file = existing(path)
    with file.open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.reader(handle, skipinitialspace=True) if row]
    if len(rows) < 2:
        raise LimbeckError(f"{file} holds {len(rows)} lines")
    columns = len(header or rows[0])
    for number, row in enumerate(rows, start=1):
        if len(row) != columns:
            raise LimbeckError(f"{file}, line {number}: {len(row)} values, expected {columns}")
    return rows


def _table(rows: Sequence[Sequence[str | float]], names: Sequence[str], *, positive: str, negative: str) -> Table:
    """Columns from lines whose last value is the class; a column of which every value is a number is one of numbers."""
    *features, target = (np.array(column) for column in zip(*rows, strict=True))
    unknown = sorted({*target.tolist()} - {positive, negative})
    if unknown:
        raise LimbeckError(f"{names[-1]} is {unknown[0]!r} in some row; expected {negative!r} or {positive!r}")
    columns: dict[str, NDArray[np.generic]] = {}
    for name, column in zip(names, features, strict=False):
        try:
            columns[name] = column.astype(np.float64)
        except ValueError:
            columns[name] = column
    return Table(columns, target == positive, (negative, positive))


def _encoded(table: Table, like: Table) -> Rows:
    """Rows of numbers: a column of a category becomes one column for each of its values in ``like``."""
    found: dict[str, NDArray[np.float64]] = {}
    for name, values in like.columns.items():
        column = table.columns[name]
        if values.dtype.kind == "f":
            found[name] = column.astype(np.float64)
        else:
            found |= {f"{name}={word}": (column == word).astype(np.float64) for word in np.unique(values).tolist()}
    rows = torch.from_numpy(np.stack(list(found.values()), axis=1))
    return Rows(rows, torch.from_numpy(table.positive).long(), table.classes, tuple(found))


def _split(
    table: Table,
    test: Table | None,
    seed: int,
    bag_size: int,
    by: Grouping,
    feature: str | None,
    train_size: int | None,
    validation: float | int,
) -> BagData:
    """Test (where there is none of its own), validation and training rows, these in bags, all drawn at random."""
    if feature is not None and feature not in table.columns:
        raise LimbeckError(
            f"feature is {feature!r}; the columns are {', '.join(table.columns)}.{nearest(feature, table.columns)}"
        )
    whole = _encoded(table, table)
    left = np.arange(len(whole))
    if test is None:
        order = permutation(derive(0, "test"), len(whole))
        cut = len(whole) // 5
        held_out, left = whole.subset(torch.from_numpy(np.sort(order[:cut]))), order[cut:]
    else:
        held_out = _encoded(test, table)
    left = left[permutation(derive(seed, "validation"), len(left))]
    count = int(validation) if validation >= 1 else round(validation * len(left))
    size = len(left) - count if train_size is None else train_size
    if count < 1 or size < 1 or count + size > len(left):
        raise LimbeckError(
            f"validation is {validation} and train_size {train_size}; both must leave rows, and {len(left)} are there"
        )
    train = left[count : count + size]
    values = None if feature is None else table.columns[feature][train]
    bags = into_bags(whole.subset(torch.from_numpy(train)), bag_size, seed, by=by, values=values)
    return BagData(bags, whole.subset(torch.from_numpy(left[:count])), held_out, None, table.classes)
