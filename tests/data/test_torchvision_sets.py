"""Data sets of torchvision."""

import gzip
import multiprocessing
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from limbeck.data.load import load
from limbeck.data.torchvision_sets import torchvision
from limbeck.errors import LimbeckError

from .shared_data import SHARED, needs_shared


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def idx(path, array):
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + array.tobytes())


@pytest.fixture
def mnist(tmp_path):
    """An unpacked MNIST of 30 + 10 random images."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 30), ("t10k", 10)):
        raw = tmp_path / "given" / "MNIST" / "raw"
        idx(raw / f"{name}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        idx(raw / f"{name}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path / "given"


def test_an_unpacked_folder_is_read_where_it_is(mnist, cache):
    source = torchvision("MNIST", root=str(mnist))
    raw = datasets.MNIST(str(mnist), train=True)
    assert (len(source.train), len(source.test), source.flip) == (30, 10, False)
    assert torch.equal(source.train[7]["image"], raw.data[7][None] / 255)
    assert source.train.labels.tolist() == raw.targets.tolist()
    assert source.classes == tuple(raw.classes)
    assert not (cache / "torchvision").exists()


def test_images_are_resized(mnist, cache):
    assert torchvision("MNIST", root=str(mnist), size=14).train.shape == (1, 14, 14)


def test_data_sets_of_files_are_read_through_their_transform(tmp_path, cache, monkeypatch):
    base = tmp_path / "given" / "dtd" / "dtd"
    for name in ("dots", "lines"):
        (base / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (20 + number, 10), (number, 0, 0)).save(base / "images" / name / f"{number}.png")
    (base / "labels").mkdir()
    for split, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (3,))):
        lines = [f"{name}/{number}.png" for name in ("dots", "lines") for number in numbers]
        (base / "labels" / f"{split}1.txt").write_text("\n".join(lines) + "\n")
    source = torchvision("DTD", root=str(tmp_path / "given"), size=8)
    assert [len(part) for part in (source.train, source.validation, source.test)] == [4, 2, 2]
    assert source.train.shape == (3, 8, 8)
    assert source.classes == ("dots", "lines")
    assert torch.allclose(source.test[0]["image"][0], torch.tensor(3 / 255))


def test_unknown_names_are_refused(cache):
    with pytest.raises(LimbeckError, match="Did you mean 'FashionMNIST'"):
        torchvision("FashionMnist")
    with pytest.raises(LimbeckError, match="does not exist"):
        torchvision("MNIST", root="/nowhere")


def test_what_cannot_be_downloaded_is_refused_and_leaves_nothing(cache, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    with pytest.raises(LimbeckError, match=r"USPS is not in .*cannot be downloaded"):
        torchvision("USPS")
    assert [path.name for path in (cache / "torchvision").iterdir()] == ["USPS.lock"]


def load_size(_):
    return len(torchvision("FashionMNIST").test)


@needs_shared
def test_fashion_mnist_is_unpacked_once_by_several_processes(cache):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(load_size, range(2)) == [10_000, 10_000]
    assert sorted(path.name for path in (cache / "torchvision").iterdir()) == ["FashionMNIST", "FashionMNIST.lock"]
    data = load("torchvision", 0, dataset="FashionMNIST", train_size=1000)
    assert (len(data.train), len(data.validation), len(data.test)) == (1000, 6000, 10_000)
    assert data.train.shape == (1, 28, 28)
    assert data.classes[9] == "Ankle boot"
    assert data.flip
    with gzip.open(SHARED / "fashion-mnist/FashionMNIST/raw/t10k-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read(16 + 784), dtype=np.uint8)[16:].reshape(28, 28)
    assert torch.equal(data.test[0]["image"][0], torch.from_numpy(raw / np.float32(255)))
