"""Opening data by name and from datasets of one's own."""

import importlib
import inspect
import subprocess
import sys

import pytest
import torch
from torch.utils.data import TensorDataset

import limbeck.data
from limbeck.data.index import SOURCES
from limbeck.data.load import from_datasets, load, source_function
from limbeck.data.random import derive
from limbeck.errors import LimbeckError


def test_digits():
    data = load("digits", 0)
    assert (len(data.train), len(data.validation), len(data.test)) == (1213, 135, 449)
    assert data.train.shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert not data.flip
    assert data.view == "weak"
    assert data.train.num_samples == 1797
    image = data.test.fetch(torch.arange(449))["image"]
    assert (image.min(), image.max()) == (0, 1)
    shares = torch.bincount(data.test.labels) / 449
    assert torch.allclose(shares, torch.full((10,), 0.1), atol=0.005)
    every = torch.cat([part.indices for part in (data.train, data.validation, data.test)])
    assert sorted(every.tolist()) == list(range(1797))


def test_the_test_split_does_not_follow_the_seed():
    first, second = load("digits", 0), load("digits", 1)
    assert torch.equal(first.test.indices, second.test.indices)
    assert not torch.equal(first.validation.indices, second.validation.indices)


def test_options_of_the_split_stand_beside_those_of_the_source():
    data = load("digits", 0, labels_per_class=5, validation=100, view="strong")
    assert (len(data.train), len(data.validation), len(data.unlabeled)) == (50, 100, 1198)
    assert data.view == "strong"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "no data source 'digit'.*Did you mean 'digits'"),
        ("digits", {"labels_per_clas": 4}, "no option 'labels_per_clas'.*Did you mean 'labels_per_class'"),
        ("folder", {"rot": "x"}, "no option 'rot'.*Did you mean 'root'"),
        ("folder", {"size": 32}, "'folder' needs the option 'root'"),
        ("folder", {"root": "/nowhere", "validation": 0}, "would be empty"),  # before the data is looked for
    ],
)
def test_misspelt_sources_and_options(name, options, message):
    with pytest.raises(LimbeckError, match=message):
        load(name, 0, **options)


@pytest.mark.parametrize("name", SOURCES)
def test_sources_can_be_configured(name):
    function = source_function(name)
    assert function.__name__ == name
    for parameter in inspect.signature(function).parameters.values():
        assert not isinstance(parameter.annotation, str)  # read at run time
        assert f"{parameter.name}:" in function.__doc__


def dataset(count, seed=0):
    images = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(images, torch.arange(count) % 4)


def test_datasets_of_ones_own():
    data = from_datasets(
        dataset(40), dataset(8, 1), seed=3, validation=None, view="none", flip=True, labels_per_class=2
    )
    assert (len(data.train), len(data.validation), len(data.test), len(data.unlabeled)) == (8, 4, 8, 28)
    assert (data.classes, data.view, data.flip) == (("0", "1", "2", "3"), "none", True)
    given = from_datasets(dataset(40), dataset(8, 1), dataset(12, 2), classes=["a", "b", "c", "d"])
    assert (len(given.train), len(given.validation), given.classes) == (40, 12, ("a", "b", "c", "d"))


def test_datasets_of_ones_own_name_what_is_wrong():
    with pytest.raises(LimbeckError, match=r"'train_siz'.*Did you mean 'train_size'"):
        from_datasets(dataset(40), dataset(8), train_siz=3)
    bad = [(torch.rand(3, 6, 6), 0), (torch.rand(3, 6, 6), 4)]
    with pytest.raises(LimbeckError, match="the test data: label 4 at index 1 is out of range"):
        from_datasets(dataset(40), bad)


def test_the_index_imports_no_torch():
    code = "import sys, limbeck.data.index; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_offers_its_names():
    for name in limbeck.data.__all__:
        assert getattr(limbeck.data, name).__name__ == name
    assert importlib.import_module("limbeck.data.random").derive is derive
    with pytest.raises(AttributeError, match="nothing"):
        _ = limbeck.data.nothing
