"""Models: a batch in, the output of a task out; they know their classes, normalisation and input size.

Importing this package imports no torch (``limbeck list`` and ``--help`` read :mod:`limbeck.models.index`);
the names below are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from limbeck.models.build import build

if TYPE_CHECKING:
    from limbeck.models.classifier import Classifier, ClassifierOutput, ImageTask
    from limbeck.models.folder import load, load_weights, push_to_hub, save
    from limbeck.models.model import Model

_HOMES = {
    "Classifier": "limbeck.models.classifier",
    "ClassifierOutput": "limbeck.models.classifier",
    "ImageTask": "limbeck.models.classifier",
    "Model": "limbeck.models.model",
    "load": "limbeck.models.folder",
    "load_weights": "limbeck.models.folder",
    "push_to_hub": "limbeck.models.folder",
    "save": "limbeck.models.folder",
}

__all__ = [
    "Classifier",
    "ClassifierOutput",
    "ImageTask",
    "Model",
    "build",
    "load",
    "load_weights",
    "push_to_hub",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
