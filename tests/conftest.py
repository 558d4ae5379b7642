"""Shared by every test: shapes are checked at run time on the ground floor, and one thread is enough."""

import os
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from limbeck.data.samples import ImageData
    from limbeck.models.classifier import Classifier

install_import_hook(["limbeck.losses", "limbeck.labels", "limbeck.metrics"], "beartype.beartype")

# A busy machine is no fault of a test, and the same commit passes or fails on every machine; to look for more:
# pytest --hypothesis-profile=explore
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def digits() -> "ImageData":
    """Real data: 8x8 grey digits, split with seed 0."""
    from limbeck.data.load import load

    return load("digits", seed=0, view="none")


@pytest.fixture
def nearest_mean(digits: "ImageData") -> "Classifier":
    """The class with the nearest mean: a classifier of known weights, right on about nine digits of ten."""
    from limbeck.models.classifier import Classifier

    images = digits.train.fetch(torch.arange(len(digits.train)))["image"].flatten(1)
    means = torch.stack([images[digits.train.labels == number].mean(0) for number in range(10)])
    head = torch.nn.Linear(64, 10)
    with torch.no_grad():
        head.weight.copy_(2 * means)
        head.bias.copy_(-means.square().sum(1))
    return Classifier(torch.nn.Sequential(torch.nn.Flatten(), head), digits.classes, channels=1, size=8)
