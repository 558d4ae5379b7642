"""Measure a trained model on data."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from limbeck.data.load import load as load_data
from limbeck.data.samples import ImageData, Samples
from limbeck.errors import LimbeckError, nearest
from limbeck.models.classifier import Classifier
from limbeck.models.folder import load
from limbeck.stages.evaluation import costs, measure, predict_logits, quality
from limbeck.teachers.frozen import Frozen

SPLITS = ("test", "validation", "train")


def evaluate(
    model: Classifier | str | Path,
    data: ImageData | Samples | str,
    *,
    split: Literal["test", "validation", "train"] = "test",
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    **arguments: Any,
) -> dict[str, float]:
    """Accuracy, calibration and cost of a classifier.

    Args:
        model: a classifier, or a folder it was saved to. Its classes are matched with the data's by name.
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
    if not isinstance(model, Classifier):
        model = load(model)
    matched = _for_classes(model, data.classes)
    if isinstance(data, ImageData) and split == "test":
        return measure(matched, data, batch_size, device)[0]
    samples = data if isinstance(data, Samples) else getattr(data, split)
    return quality(predict_logits(matched, samples, batch_size, device)) | costs(matched, samples, device)


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
