"""Folders of image files."""

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.folder import folder
from limbeck.data.load import load
from limbeck.data.pixels import Lazy
from limbeck.errors import LimbeckError

from .shared_data import SHARED, needs_shared


def save(path, size=(12, 10), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                save(tmp_path / part / name / f"{number}.png", seed=10 * label + number)
    return tmp_path


def test_splits_and_classes(root):
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    source = folder(str(root), size=8)
    assert source.classes == ("cat", "dog")
    assert (len(source.train), len(source.test), source.validation) == (8, 4, None)
    assert source.train.labels.tolist() == [0] * 4 + [1] * 4
    assert source.train.shape == (3, 8, 8)
    assert source.flip


def test_images_keep_their_pixels_without_a_size(root):
    source = folder(str(root), size=None)
    expected = np.asarray(Image.open(root / "train" / "dog" / "2.png")) / 255
    # float32 against float64
    np.testing.assert_allclose(source.train[6]["image"].permute(1, 2, 0), expected, atol=1e-7)


def test_the_centre_is_kept(tmp_path):
    image = np.zeros((8, 16), dtype=np.uint8)
    image[:, 4:12] = 255
    (tmp_path / "a").mkdir()
    for number in range(5):
        Image.fromarray(image).save(tmp_path / "a" / f"{number}.png")
    assert (folder(str(tmp_path), size=8).train[0]["image"] == 1).all()


def test_a_validation_folder_is_used(root):
    save(root / "val" / "cat" / "0.png")
    save(root / "val" / "dog" / "0.png")
    assert len(folder(str(root)).validation) == 2


def test_without_test_folder_a_fifth_is_held_out(root):
    source = folder(str(root / "train"))
    assert (len(source.train), len(source.test)) == (6, 2)
    assert sorted(source.train.indices.tolist() + source.test.indices.tolist()) == list(range(8))


def test_grey_files_stay_grey_unless_mixed(tmp_path):
    for number in range(5):
        save(tmp_path / "grey" / "a" / f"{number}.png", mode="L", seed=number)
        save(tmp_path / "mixed" / "a" / f"{number}.png", mode="L", seed=number)
    save(tmp_path / "mixed" / "b" / "0.png")
    grey, mixed = folder(str(tmp_path / "grey"), size=None), folder(str(tmp_path / "mixed"), size=None)
    assert grey.train.shape == (1, 10, 12)
    assert mixed.train.shape == (3, 10, 12)
    at = int(torch.nonzero(mixed.train.labels == 0)[0])
    image = mixed.train[at]["image"]
    assert torch.equal(image[0], image[2])


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    (tmp_path / "a").mkdir()
    for number in range(5):
        Image.new("RGB", (12, 10)).save(tmp_path / "a" / f"{number}.jpg", exif=exif)
    assert folder(str(tmp_path), size=None).train.shape == (3, 12, 10)


# No damage in the middle for JPEG: its decoders read over it.
@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(suffix, damage) for suffix in ("png", "jpg") for damage in ("text", "truncated", "empty")] + [("png", "middle")],
)
def test_damaged_files_are_named(root, suffix, damage):
    path = save(root / "train" / "dog" / f"bad.{suffix}", size=(64, 64))
    content = path.read_bytes()
    cut = len(content) // 2
    path.write_bytes(
        {
            "text": b"<html>not found</html>",
            "truncated": content[:cut],
            "empty": b"",
            "middle": content[:cut] + b"\0" * 16 + content[cut + 16 :],
        }[damage]
    )
    with pytest.raises(LimbeckError, match=f"{path}: "):
        folder(str(root))


def test_lazily_decoded_files_are_the_same_and_named_when_damaged(root, monkeypatch):
    eager = folder(str(root), size=8).train
    monkeypatch.setattr("limbeck.data.pixels.read.__kwdefaults__", {"threads": 1, "limit": 10})
    lazy = folder(str(root), size=8).train
    assert isinstance(lazy.images, Lazy)
    at = torch.tensor([5, 0, 7])
    assert torch.equal(lazy.fetch(at)["image"], eager.fetch(at)["image"])
    path = root / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(LimbeckError, match=f"{path}: the image is damaged"):
        lazy.fetch(at)


def test_sizes_that_differ_name_both_files(root):
    path = save(root / "train" / "dog" / "wide.png", size=(20, 10))
    with pytest.raises(LimbeckError, match=f"{path} is .*{root / 'train' / 'cat' / '0.png'} is .*give size="):
        folder(str(root), size=None)


def test_empty_class_folders_are_named(root):
    (root / "train" / "emu").mkdir()
    with pytest.raises(LimbeckError, match=f"{root / 'train' / 'emu'}: the class folder holds no images"):
        folder(str(root))


def test_missing_folders(root):
    with pytest.raises(LimbeckError, match="does not exist"):
        folder(str(root / "nowhere"))
    with pytest.raises(LimbeckError, match="is a file"):
        folder(str(root / "train" / "cat" / "0.png"))
    with pytest.raises(LimbeckError, match="holds no folders"):
        folder(str(root / "train" / "cat"))
    (root / "train").rename(root / "trian")
    with pytest.raises(LimbeckError, match="no folder train"):
        folder(str(root))


def test_test_classes_must_be_those_of_training(root):
    (root / "test" / "dog").rename(root / "test" / "dogs")
    with pytest.raises(LimbeckError, match=r"\['cat', 'dogs'\].*\['cat', 'dog'\]"):
        folder(str(root))


@needs_shared
def test_trashnet():
    data = load("folder", 0, root=str(SHARED / "trashnet"), size=32)
    assert (len(data.train), len(data.validation), len(data.test)) == (1822, 202, 503)
    assert data.classes == ("cardboard", "glass", "metal", "paper", "plastic", "trash")
    assert torch.bincount(data.test.labels).tolist() == [81, 100, 81, 119, 95, 27]
    assert data.train.shape == (3, 32, 32)
