"""Images as tensors."""

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.pixels import Joined, Lazy, Memory, read, to_pixels
from limbeck.errors import LimbeckError

ROWS = torch.tensor([2, 0, 2])


def test_bytes_and_floats_give_the_same_images():
    pixels = torch.randint(0, 256, (3, 1, 4, 5), dtype=torch.uint8)
    expected = pixels[ROWS].float() / 255
    assert torch.equal(Memory(pixels).take(ROWS), expected)
    assert torch.equal(Memory(pixels.float() / 255).take(ROWS), expected)
    assert Memory(pixels).shape == (1, 4, 5)


def test_large_bytes_are_converted_by_batch(monkeypatch):
    pixels = torch.randint(0, 256, (3, 1, 4, 5), dtype=torch.uint8)
    cached = Memory(pixels)
    monkeypatch.setattr("limbeck.data.pixels.FLOAT_BYTES", 1)
    kept = Memory(pixels)
    assert kept.pixels.dtype == torch.uint8
    assert cached.pixels.dtype == torch.float32
    assert torch.equal(kept.take(ROWS), cached.take(ROWS))


def test_taken_images_are_fresh_memory():
    memory = Memory(torch.full((2, 1, 2, 2), 0.5))
    memory.take(torch.tensor([0])).zero_()
    assert (memory.take(torch.tensor([0])) == 0.5).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_name_the_index(value):
    pixels = torch.zeros(4, 1, 2, 2)
    pixels[2, 0, 1, 1] = value
    with pytest.raises(LimbeckError, match=r"train, index 2: .*NaN or infinite"):
        Memory(pixels, "train")


@pytest.mark.parametrize(("value", "hint"), [(200.0, "divide by 255"), (-1.5, "before normalisation")])
def test_values_outside_the_range_name_the_index(value, hint):
    pixels = torch.zeros(4, 1, 2, 2)
    pixels[3, 0, 0, 0] = value
    with pytest.raises(LimbeckError, match=f"train, index 3: .*{hint}"):
        Memory(pixels, "train")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(2, 4, 4), r"shape \(2, 4, 4\)"),
        (torch.zeros(2, 2, 4, 4), "1 or 3"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int64), "int64"),
        (torch.zeros(0, 1, 4, 4), "no images"),
    ],
)
def test_unfit_tensors_are_refused(pixels, message):
    with pytest.raises(LimbeckError, match=message):
        Memory(pixels)


def test_lazy_images_equal_images_in_memory():
    pixels = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8)
    lazy = read(pixels.__getitem__, 3, str, limit=179)  # one byte less than they take
    memory = read(pixels.__getitem__, 3, str, limit=180)
    assert isinstance(lazy, Lazy)
    assert isinstance(memory, Memory)
    assert torch.equal(lazy.take(ROWS), memory.take(ROWS))
    joined = Joined([lazy, memory])
    assert torch.equal(joined.take(torch.tensor([5, 0, 3])), memory.take(torch.tensor([2, 0, 0])))


@pytest.mark.parametrize("limit", [0, 1000])
def test_shapes_that_differ_name_both_images(limit):
    images = [torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), torch.zeros(1, 4, 5)]
    with pytest.raises(LimbeckError, match=r"image 2 is \[1, 4, 5\], image 0 is \[1, 4, 4\]"):
        read(images.__getitem__, 3, lambda row: f"image {row}", limit=limit).take(torch.tensor([0, 2]))


def test_types_that_differ_are_refused():
    images = [torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)]
    with pytest.raises(LimbeckError, match=r"1 is torch.uint8, 0 is torch.float32"):
        read(images.__getitem__, 2, str)


def test_every_kind_of_image_gives_the_same_pixels():
    array = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    array.flags.writeable = False
    expected = torch.from_numpy(np.moveaxis(array, -1, 0).copy())
    for image in (array, np.moveaxis(array, -1, 0), expected, Image.fromarray(array)):
        assert torch.equal(to_pixels(image, "x"), expected)
    grey = array[..., 0]
    for image in (grey, grey[..., None], torch.from_numpy(grey.copy()), Image.fromarray(grey)):
        assert torch.equal(to_pixels(image, "x"), torch.from_numpy(grey[None].copy()))


def test_modes_of_pillow():
    rgba = Image.new("RGBA", (3, 2), (10, 20, 30, 0))
    assert to_pixels(rgba, "x")[:, 0, 0].tolist() == [10, 20, 30]
    palette = Image.new("RGB", (3, 2), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert to_pixels(palette, "x")[:, 0, 0].tolist() == [10, 20, 30]
    bits = Image.new("1", (3, 2), 1)
    assert to_pixels(bits, "x").tolist() == [[[255] * 3] * 2]
    deep = Image.fromarray(np.full((2, 3), 65535 // 2, dtype=np.uint16))
    assert to_pixels(deep, "x").tolist() == [[[127] * 3] * 2]
    with pytest.raises(LimbeckError, match=r"here: .*'F'"):
        to_pixels(Image.new("F", (3, 2)), "here")


@pytest.mark.parametrize("image", ["a.jpg", np.zeros((4, 4), dtype=np.int32), torch.zeros(5, 4, 4)])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(LimbeckError, match="here: "):
        to_pixels(image, "here")
