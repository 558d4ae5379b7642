"""NumPy archives."""

import numpy as np
import pytest
import torch

from limbeck.data.load import load
from limbeck.data.npz import npz
from limbeck.errors import LimbeckError

from .shared_data import SHARED, needs_shared

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 6, 5), dtype=np.uint8)
LABELS = np.arange(10) % 2


def save(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return str(folder / "data.npz")


def test_both_sets_of_names(tmp_path):
    column = LABELS[:, None]
    medmnist = save(
        tmp_path, train_images=PIXELS, train_labels=column, test_images=PIXELS[:4], test_labels=column[:4],
        val_images=PIXELS[:2], val_labels=column[:2],
    )  # fmt: skip
    first = npz(medmnist)
    assert [len(part) for part in (first.train, first.validation, first.test)] == [10, 2, 4]
    keras = save(tmp_path, x_train=PIXELS, y_train=LABELS, x_test=PIXELS[:4], y_test=LABELS[:4])
    second = npz(keras)
    assert second.validation is None
    assert torch.equal(first.train[7]["image"], second.train[7]["image"])
    assert torch.equal(first.train[7]["image"], torch.from_numpy(PIXELS[7] / np.float32(255))[None])


@pytest.mark.parametrize("layout", ["last", "first", "float"])
def test_layouts_and_types(tmp_path, layout):
    colour = np.stack([PIXELS, 255 - PIXELS, PIXELS // 2], -1)
    stored = {"last": colour, "first": np.moveaxis(colour, -1, 1), "float": colour / 255}[layout]
    source = npz(save(tmp_path, x_train=stored, y_train=LABELS), flip=False)
    assert source.train.shape == (3, 6, 5)
    assert (len(source.train), len(source.test), source.flip) == (8, 2, False)
    item = source.train[0]
    # float32 against float64
    np.testing.assert_allclose(item["image"].permute(1, 2, 0), colour[item["index"]] / 255, atol=1e-7)


def test_names_of_classes_and_size(tmp_path):
    source = npz(save(tmp_path, x_train=PIXELS, y_train=LABELS, classes=np.array(["cat", "dog"])), size=3)
    assert source.classes == ("cat", "dog")
    assert source.train.shape == (1, 3, 3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": PIXELS}, r"holds the arrays \['x'\]"),
        ({"x_train": PIXELS, "y_train": LABELS - 1}, "y_train: label -1 at index 0 is out of range"),
        (
            {"x_train": PIXELS, "y_train": LABELS, "classes": np.array(["a"])},
            "train: label 1 at index 1 is out of range",
        ),
        ({"x_train": PIXELS.astype(float), "y_train": LABELS}, "x_train, index 0: .*divide by 255"),
        ({"x_train": np.where(PIXELS > 253, np.nan, 0.5), "y_train": LABELS}, "x_train, index .*NaN"),
        ({"x_train": PIXELS.astype(int), "y_train": LABELS}, "x_train: type int64"),
        ({"x_train": PIXELS[0], "y_train": LABELS}, "x_train: shape"),
        ({"x_train": PIXELS, "y_train": LABELS.astype(float)}, "y_train: type float64"),
        ({"x_train": PIXELS, "y_train": np.eye(10, dtype=int)}, "y_train: shape .*one label an image"),
        ({"x_train": PIXELS, "y_train": LABELS[:5]}, "10 images but 5 labels"),
    ],
)
def test_unfit_arrays_are_refused(tmp_path, arrays, message):
    with pytest.raises(LimbeckError, match=message):
        npz(save(tmp_path, **arrays))


def test_unreadable_archives_are_refused(tmp_path):
    path = save(tmp_path, x_train=PIXELS, y_train=LABELS)
    content = (tmp_path / "data.npz").read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2]):
        (tmp_path / "data.npz").write_bytes(damaged)
        with pytest.raises(LimbeckError, match=f"{path}: not a readable NumPy archive"):
            npz(path)
    pickled = save(tmp_path, x_train=np.array([object()]), y_train=LABELS)
    with pytest.raises(LimbeckError, match="not a readable NumPy archive"):
        npz(pickled)
    np.save(tmp_path / "single.npy", PIXELS)
    with pytest.raises(LimbeckError, match="not a readable NumPy archive"):
        npz(str(tmp_path / "single.npy"))


@needs_shared
@pytest.mark.parametrize(
    ("path", "sizes", "shape", "classes"),
    [
        ("sign-digits/sign-digits-32.npz", (1486, 165, 411), (3, 32, 32), tuple("0123456789")),
        ("pneumoniamnist/pneumoniamnist.npz", (4708, 524, 624), (1, 28, 28), ("0", "1")),
        ("bccd-cells/bccd-cells-32.npz", (2804, 1137, 945), (3, 32, 32), ("RBC", "WBC", "Platelets")),
    ],
)
def test_real_archives(path, sizes, shape, classes):
    data = load("npz", 0, path=str(SHARED / path))
    assert (len(data.train), len(data.validation), len(data.test)) == sizes
    assert (data.train.shape, data.classes) == (shape, classes)
