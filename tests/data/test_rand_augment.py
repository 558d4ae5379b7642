"""RandAugment's operations, against torchvision and Pillow's definitions."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from limbeck.data.rand_augment import DRAWS, OPERATIONS, cutout, rand_augment

STRENGTHS = torch.tensor([0.0, 0.13, 0.5, 0.77, 0.999])
FACTORS = (0.05 + 0.9 * STRENGTHS).tolist()


def images(channels):
    """Five images with 256 levels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (5, channels, 9, 12), generator=generator).float() / 255


def each(images, function, values):
    return torch.stack([function(image, value) for image, value in zip(images, values, strict=True)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "function", "values"),
    [
        ("autocontrast", lambda x, _: reference.autocontrast(x), FACTORS),
        ("brightness", reference.adjust_brightness, FACTORS),
        ("color", reference.adjust_saturation, FACTORS),
        ("contrast", reference.adjust_contrast, FACTORS),
        ("sharpness", reference.adjust_sharpness, FACTORS),
        ("solarize", reference.solarize, STRENGTHS.tolist()),
        ("identity", lambda x, _: x, FACTORS),
    ],
)
def test_operations_equal_torchvision(name, function, values, channels):
    x = images(channels)
    # Contrast blends with a mean of rounded levels (1/510 at most, averaged over 108 pixels); the luminance weights
    # of torchvision have one digit more (0.2989, so 2e-4). The others differ in the order of float32 operations.
    tolerance = {"contrast": 1e-3, "color": 2e-4}.get(name, 1e-6)
    torch.testing.assert_close(OPERATIONS[name](x, STRENGTHS), each(x, function, values), atol=tolerance, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_equalize_spreads_the_levels_evenly(channels):
    x = (images(channels) * 0.3 + 0.2).mul(255).round().div(255)
    seen = OPERATIONS["equalize"](x, STRENGTHS).flatten(2)
    assert torch.allclose(seen.amin(2), torch.zeros(()))
    assert torch.allclose(seen.amax(2), torch.ones(()))
    for before, after in zip(x.flatten(0, 1).flatten(1), seen.flatten(0, 1), strict=True):
        levels = before.sort().values
        # The definition: the number of pixels up to this level, less those of the lowest one, over the rest.
        lowest = int((before == levels[0]).sum())
        expected = [(int((before <= value).sum()) - lowest) / (len(before) - lowest) for value in before]
        torch.testing.assert_close(after, torch.tensor(expected))
    flat = torch.full((1, channels, 4, 4), 0.4)
    assert torch.equal(OPERATIONS["equalize"](flat, STRENGTHS[:1]), flat)


def test_posterize_keeps_four_to_eight_bits():
    x = images(3)
    bits = [4, 4, 6, 7, 8]
    levels = (x * 255).round().to(torch.uint8)
    expected = each(levels, reference.posterize, bits).float() / 255
    # Exact up to the division by 255.
    torch.testing.assert_close(OPERATIONS["posterize"](x, STRENGTHS), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "sign"), [("translate_x", -1), ("translate_y", -1)])
def test_translations_move_whole_pixels(name, sign):
    x = images(1)[:1, :, :, :10]
    size = 10 if name == "translate_x" else 9
    axis = -1 if name == "translate_x" else -2
    pixels = 2
    strength = torch.tensor([(0.3 - pixels / size) / 0.6])
    moved = OPERATIONS[name](x, strength)
    expected = torch.full_like(x, 0.5)
    expected.narrow(axis, pixels, size - pixels).copy_(x.narrow(axis, 0, size - pixels))
    # Grey is taken off and added again for the border, which rounds.
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y"])
def test_warps_equal_torchvision_but_for_ties(name):
    x = torch.randint(0, 256, (40, 3, 32, 24), generator=torch.Generator().manual_seed(0)).float() / 255
    strength = torch.linspace(0.02, 0.98, 40)
    amount = (-0.3 + 0.6 * strength).tolist()

    def warp(image, value):
        # Torchvision turns and shears in degrees, the other way round.
        turn = math.degrees(math.pi / 6 * value / 0.3) if name == "rotate" else 0.0
        shear = [0.0, 0.0]
        if name != "rotate":
            shear[0 if name == "shear_x" else 1] = math.degrees(math.atan(value))
        return reference.affine(
            image, angle=-turn if name == "rotate" else 0.0, translate=[0, 0], scale=1.0,
            shear=shear, interpolation=InterpolationMode.NEAREST, fill=[0.5] * 3,
            center=None if name == "rotate" else [0.0, 0.0],
        )  # fmt: skip

    seen = OPERATIONS[name](x, strength)
    shares = [
        min(
            ((warp(image, sign * value) - got).abs() < 1e-6).float().mean().item()
            for image, value, got in zip(x, amount, seen, strict=True)
        )
        for sign in (1, -1)
    ]
    # One direction for all of them; pixels that fall between two may be rounded either way.
    assert max(shares) > 0.97


@pytest.mark.parametrize(("name", "axis"), [("shear_x", 2), ("shear_y", 3)])
def test_shears_hold_the_top_left_corner(name, axis):
    """Pillow's ``AFFINE, (1, v, 0, 0, 1, 0)``: row y is read from ``v (y + 1/2)`` to the right."""
    x = images(1)[:1, :, :9, :9]
    row = OPERATIONS[name](x, torch.tensor([0.999])).movedim(axis, 0)[:, 0, 0]
    for y, got in enumerate(row):
        shift = math.floor(0.2994 * (y + 0.5) + 0.5)
        expected = torch.full((9,), 0.5)
        expected[: 9 - shift] = x.movedim(axis, 0)[y, 0, 0, shift:]
        # Grey is taken off and added again for the border, which rounds.
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_middle_strength_of_a_warp_changes_nothing():
    x = images(3)
    for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        torch.testing.assert_close(OPERATIONS[name](x, torch.full((5,), 0.5)), x, atol=1e-6, rtol=0)


def test_two_operations_are_drawn_one_after_the_other():
    x = images(3)
    names = list(OPERATIONS)
    first, second = names.index("solarize"), names.index("brightness")
    draws = np.tile([(first + 0.5) / 14, 0.4, (second + 0.5) / 14, 0.2], (5, 1))
    assert draws.shape[1] == DRAWS
    by_hand = OPERATIONS["brightness"](OPERATIONS["solarize"](x, torch.full((5,), 0.4)), torch.full((5,), 0.2))
    assert torch.equal(rand_augment(x, draws), by_hand)


def test_the_table_of_operations_is_fixmatchs():
    assert list(OPERATIONS) == [
        "autocontrast", "brightness", "color", "contrast", "equalize", "identity", "posterize", "rotate", "sharpness",
        "shear_x", "shear_y", "solarize", "translate_x", "translate_y",
    ]  # fmt: skip


def test_cutout_covers_half_the_size_around_its_centre():
    x = torch.ones(3, 1, 8, 8)
    holes = cutout(x, np.array([[0.5, 0.5], [0.0, 0.0], [0.999, 0.5]])) == 0.5
    expected = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    expected[0, :, 2:6, 2:6] = True
    expected[1, :, 0:2, 0:2] = True
    expected[2, :, 5:8, 2:6] = True
    assert torch.equal(holes, expected)
