"""Measure a trained model on data."""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from limbeck.data.data import Data
from limbeck.data.load import load as load_data
from limbeck.data.samples import ImageData, Samples
from limbeck.errors import LimbeckError, nearest
from limbeck.models.classifier import Classifier
from limbeck.models.folder import load
from limbeck.models.model import Model
from limbeck.stages.evaluation import costs, evaluation, measure, predict_logits, quality
from limbeck.stages.evaluation.shipped import device_of
from limbeck.teachers.frozen import Frozen

SPLITS = ("test", "validation", "train")


def evaluate(
    model: Model | str | Path,
    data: Data | Samples | str,
    *,
    split: Literal["test", "validation", "train"] = "test",
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    **arguments: Any,
) -> dict[str, float]:
    """The numbers of a model: of a classifier its accuracy, calibration and cost.

    Args:
        model: a model, or a folder it was saved to. The classes of a classifier are matched with the data's by name.
        data: the name of a data set with its ``arguments``, data that is loaded already, or samples.
        split: which part of the data. On ``test`` a temperature is fitted on the validation part, and its
            effect is there as ``scaled/...``; the other parts and samples alone have no second part to fit
            it on.
        seed: of the data's split. To be measured on images that it was not trained on, a model needs the
            seed and the arguments of its training.
        batch_size: images a forward pass.
        device: where to compute; by default where the model is. The model ends where it was.
        **arguments: of the data set and its split, where ``data`` is a name.

    Returns:
        Metrics by name, as in a run's ``result.json``: fractions in [0, 1], ``latency_ms`` in milliseconds.

    Raises:
        LimbeckError: an unknown data set or split, classes of the data that the model does not have,
            samples without labels, or logits that are not numbers.
    """
    if split not in SPLITS:
        raise LimbeckError(f"unknown split {split!r}.{nearest(split, SPLITS)} Known: {', '.join(SPLITS)}")
    if batch_size < 1:
        raise LimbeckError(f"batch_size is {batch_size}; it must be at least 1")
    if isinstance(data, str):
        data = load_data(data, seed, **arguments)
    elif arguments:
        raise LimbeckError(f"{', '.join(arguments)}: only for data given by name, and this data is loaded already")
    if not isinstance(model, Model):
        model = load(model)
    if not isinstance(model, Classifier):
        return _other(model, data, split, device)
    if not isinstance(data, ImageData | Samples):
        raise LimbeckError(f"a classifier is measured on images with labels, this data is a {type(data).__name__}")
    matched = _for_classes(model, data.classes)
    if isinstance(data, ImageData) and split == "test":
        return measure(matched, data, batch_size, device)[0]
    samples = data if isinstance(data, Samples) else getattr(data, split)
    return quality(predict_logits(matched, samples, batch_size, device)) | costs(matched, samples, device)


def _other(model: Model, data: Data | Samples, split: str, device: torch.device | str | None) -> dict[str, float]:
    """The numbers of a model that is no classifier, as at the end of its training."""
    if split != "test" or not isinstance(data, Data):
        raise LimbeckError(f"a model for {model.task} is measured on the test split of its data, not on {split}")
    if type(data.task) is not type(model.spec):
        raise LimbeckError(
            f"the model was made for {type(model.spec).__name__}, the data is for {type(data.task).__name__}"
        )
    place = device_of(model) if device is None else torch.device(device)
    with tempfile.TemporaryDirectory() as folder:
        return evaluation(model.task).report(model, {}, data, Path(folder), place)


def _for_classes(model: Classifier, classes: Sequence[str]) -> nn.Module:
    """The model with its logits in the order of the data's classes."""
    if model.classes == tuple(classes):
        return model
    missing = [name for name in classes if name not in model.classes]
    if missing:
        raise LimbeckError(
            f"the model does not know the classes {missing}: data {list(classes)}, model {list(model.classes)}"
        )
    return Frozen(copy.deepcopy(model), classes)
