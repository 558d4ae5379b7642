"""Opening data: by the name of a source, or from datasets of one's own."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from limbeck.data.data import Data
from limbeck.data.index import SOURCES
from limbeck.data.samples import ImageData, Source
from limbeck.data.splits import Split, split
from limbeck.data.user_sets import wrap
from limbeck.errors import LimbeckError, nearest

_SPLIT_OPTIONS = tuple(field.name for field in dataclasses.fields(Split))


def source_function(name: str) -> Callable[..., Source | Data]:
    """The function behind a short name of :data:`limbeck.data.index.SOURCES`.

    Raises:
        LimbeckError: there is no such source.
    """
    if name not in SOURCES:
        raise LimbeckError(f"there is no data source {name!r}; known: {', '.join(SOURCES)}.{nearest(name, SOURCES)}")
    module, function = SOURCES[name].split(":")
    found: Callable[..., Source | Data] = getattr(importlib.import_module(module), function)
    return found


def makes_splits(function: Callable[..., Source | Data]) -> bool:
    """Whether a source makes its own splits: it then takes the seed of the run and returns the run's data."""
    return "seed" in inspect.signature(function).parameters


def load(name: str, seed: int, **arguments: Any) -> Data:
    """Open a source and split it for one run.

    Args:
        name: a short name of :data:`limbeck.data.index.SOURCES`, such as ``"digits"``.
        seed: the seed of the run.
        arguments: the source's own options and, unless it makes its own splits, those of
            :class:`limbeck.data.splits.Split`, side by side.

    Raises:
        LimbeckError: an unknown source or option, or anything that is wrong with the data.
    """
    function = source_function(name)
    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if name != "seed"}
    alone = makes_splits(function)
    known = list(parameters) if alone else [*parameters, *_SPLIT_OPTIONS]
    for option in arguments:
        if option not in known:
            raise LimbeckError(
                f"data source {name!r} has no option {option!r}; known: {', '.join(known)}.{nearest(option, known)}"
            )
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in arguments:
            raise LimbeckError(f"data source {name!r} needs the option {option!r}")
    if alone:
        return cast("Data", function(seed=seed, **arguments))
    # First of all, as it costs nothing and reading the data may take minutes.
    how = Split(**{option: value for option, value in arguments.items() if option in _SPLIT_OPTIONS})
    source = function(**{option: value for option, value in arguments.items() if option in parameters})
    return split(cast("Source", source), how, seed)


def load_images(dataset: str | Mapping[str, Any], seed: int, where: str) -> ImageData:
    """Open the images with classes that another source is made of.

    Args:
        dataset: a data block: the name of a source, or a mapping of name and options.
        seed: the seed of the run.
        where: which source asks, for messages.

    Raises:
        LimbeckError: no source is named, it cannot be opened, or it holds no images with classes.
    """
    block = {"name": dataset} if isinstance(dataset, str) else dict(dataset)
    if "name" not in block:
        raise LimbeckError(f"{where}: dataset names no source; give {{name: torchvision, dataset: FashionMNIST}}")
    name = block.pop("name")
    data = load(name, seed, **block)
    if not isinstance(data, ImageData):
        raise LimbeckError(f"{where}: {name!r} holds no images with classes")
    return data


def open_source(dataset: str | dict[str, Any], where: str) -> Source:
    """Open a data set of labelled images that leaves its splits to others.

    Args:
        dataset: a data block without splits.
        where: which source asks, for messages.

    Raises:
        LimbeckError: it cannot be opened, or makes its own splits.
    """
    block = {"name": dataset} if isinstance(dataset, str) else dict(dataset)
    function = source_function(str(block.pop("name", "")))
    if makes_splits(function):
        raise LimbeckError(
            f"{where}: dataset {function.__name__!r} makes its own splits; take one of images with labels"
        )
    try:
        inspect.signature(function).bind(**block)
    except TypeError as error:
        raise LimbeckError(f"{where}: dataset {function.__name__!r}: {error}; splits are options of {where}") from None
    source = function(**block)
    assert isinstance(source, Source)
    return source


def from_datasets(
    train: Any,
    test: Any,
    validation: Any = None,
    classes: Sequence[str] | None = None,
    flip: bool = False,
    view: str = "weak",
    seed: int = 0,
    **options: Any,
) -> ImageData:
    """The data of one run from datasets of one's own.

    Args:
        train: a map-style dataset, see :func:`limbeck.data.user_sets.wrap`.
        test: the same, for the final numbers.
        validation: the same; where not given, it is held out from ``train``.
        classes: the names of the classes; where not given ``train.classes``, else "0", "1", ...
        flip: whether a mirrored image is still an image of its class.
        view: augmentation of the training images.
        seed: the seed of the run.
        options: the other options of :class:`limbeck.data.splits.Split`.

    Raises:
        LimbeckError: an unknown option, or an item that is not what it should be, naming its index.
    """
    for option in options:
        if option not in _SPLIT_OPTIONS:
            known = ", ".join(_SPLIT_OPTIONS)
            raise LimbeckError(f"there is no option {option!r}; known: {known}.{nearest(option, _SPLIT_OPTIONS)}")
    how = Split(view=view, **options)
    first = wrap(train, classes, where="the training data")
    source = Source(
        first,
        wrap(test, first.classes, where="the test data"),
        None if validation is None else wrap(validation, first.classes, where="the validation data"),
        flip=flip,
    )
    return split(source, how, seed)
