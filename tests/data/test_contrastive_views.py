"""SimCLR's augmentation, part by part against torchvision."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from limbeck.data import contrastive_views, crops
from limbeck.data.views import apply
from limbeck.errors import LimbeckError

COUNT = 60


def images(channels: int = 3, height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.rand(COUNT, channels, height, width, generator=torch.Generator().manual_seed(1))


def draws(columns: int) -> contrastive_views.Draws:
    return np.random.default_rng(0).random((COUNT, columns))


def one_by_one(x: torch.Tensor, change) -> torch.Tensor:
    return torch.stack([change(image, at) for at, image in enumerate(x)])


@pytest.mark.parametrize("size", [(24, 32), (32, 32), (5, 7), (2, 9)])
def test_parts_are_the_resized_crops_of_torchvision(size: tuple[int, int]) -> None:
    x = images(3, *size)
    boxes = crops.draw_boxes(*size, draws(crops.DRAWS), 0.08, 1.0)
    area = boxes.height * boxes.width / (size[0] * size[1])
    if min(size) > 20:  # of few pixels shares are coarse, and oblong images have a square
        assert area.min() == pytest.approx(0.08, abs=0.03)
        assert area.max() > 0.85
        aspect = boxes.width / boxes.height
        assert aspect.min() > 0.7
        assert aspect.max() < 1.43
    assert bool(((boxes.top >= 0) & (boxes.top + boxes.height <= size[0])).all())
    assert bool(((boxes.left >= 0) & (boxes.left + boxes.width <= size[1])).all())
    expected = one_by_one(
        x,
        lambda image, at: functional.resized_crop(
            image, *(int(side[at]) for side in boxes), list(size), antialias=True
        ),
    )
    # Weights of a pixel are shares of places up to 32 in float32: 32 times 6e-8 each.
    torch.testing.assert_close(crops.resized_parts(x, boxes), expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.03, 0.2, 0.5])
def test_hue(turn: float) -> None:
    x = images()
    x[0], x[1, 0] = 0.25, 1.0  # grey stays what it is
    found = contrastive_views._hue(x, torch.full((COUNT,), turn))
    torch.testing.assert_close(found, functional.adjust_hue(x, turn), rtol=0, atol=1e-5)  # HSV in float32
    assert torch.equal(found[0], x[0])
    torch.testing.assert_close(found.amax(1), x.amax(1), rtol=0, atol=1e-6)


def test_brightness_contrast_and_saturation() -> None:
    x = images()
    factors = torch.linspace(0, 1.8, COUNT)
    for ours, theirs, tolerance in (
        (contrastive_views._brightness, functional.adjust_brightness, 1e-6),
        # The mean of the grey image is taken of 256 levels here: half a level times the largest factor less 1.
        (contrastive_views._contrast, functional.adjust_contrast, 0.5 / 255),
        # Weights of the three channels have four digits there, three here.
        (contrastive_views._saturation, functional.adjust_saturation, 2e-4),
    ):
        expected = one_by_one(x, lambda image, at, change=theirs: change(image, float(factors[at])))
        torch.testing.assert_close(ours(x, factors), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [(24, 32), (64, 40)])
def test_blur_has_a_kernel_of_a_tenth_of_the_height(size: tuple[int, int]) -> None:
    x = images(3, *size)
    share = draws(1)[:, 0]
    side = 2 * (size[0] // 20) + 1
    expected = one_by_one(
        x, lambda image, at: functional.gaussian_blur(image, [side, side], [0.1 + 1.9 * share[at]] * 2)
    )
    torch.testing.assert_close(contrastive_views._blur(x, share), expected, rtol=0, atol=1e-5)
    small = images(1, 12, 12)
    assert torch.equal(contrastive_views._blur(small, share), small)


def test_each_image_is_jittered_in_its_own_order_and_strength() -> None:
    x = images()
    given = draws(5)
    strength = 0.5
    found = contrastive_views._jitter(x, given, strength)
    parts = (contrastive_views._brightness, contrastive_views._contrast, contrastive_views._saturation)
    seen = set()
    for at in range(COUNT):
        image = x[at : at + 1]
        order = contrastive_views.ORDERS[int(given[at, 4] * 24)]
        seen.add(tuple(order))
        for kind in order:
            if kind == 3:
                image = contrastive_views._hue(image, torch.tensor([0.1 * (2 * given[at, 3] - 1)]).float())
            else:
                image = parts[kind](image, torch.tensor([0.6 + 0.8 * given[at, kind]]).float())
        torch.testing.assert_close(found[at : at + 1], image, rtol=0, atol=1e-6)
    assert len(seen) > 15
    nothing = contrastive_views._jitter(x, np.full((COUNT, 5), 0.5), 0.0)
    torch.testing.assert_close(nothing, x, rtol=0, atol=1e-6)  # colours go to HSV and back


def test_how_often_each_part_happens() -> None:
    x = torch.rand(2000, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    given = np.random.default_rng(0).random((2000, contrastive_views.DRAWS))
    whole = {"low": 1.0, "high": 1.0}
    given[:, 1 : crops.DRAWS : 4] = 0.5  # aspect 1: the whole image
    plain = contrastive_views.simclr(x, given, False, **whole, strength=0.0, blur=False)
    grey = (plain[:, 0] == plain[:, 1]).flatten(1).all(1).float().mean()
    assert float(grey) == pytest.approx(0.2, abs=0.03)  # three standard errors of 2,000 draws
    mirrored = contrastive_views.simclr(x, given, True, **whole, strength=0.0, blur=False)
    assert float((mirrored != plain).flatten(1).any(1).float().mean()) == pytest.approx(0.5, abs=0.035)
    blurred = contrastive_views.simclr(x, given, False, **whole, strength=0.0)
    assert float((blurred != plain).flatten(1).any(1).float().mean()) == pytest.approx(0.5, abs=0.035)
    jittered = contrastive_views.simclr(x, given, False, **whole, strength=1.0, blur=False)
    changed = (jittered != plain).flatten(1).any(1).float().mean()
    assert float(changed) == pytest.approx(0.8, abs=0.03)


def test_views_by_name() -> None:
    x = images(1, 16, 16)
    at = torch.arange(COUNT)
    seen = {
        name: apply(name, x, seed=0, epochs=torch.zeros_like(at), indices=at, flip=False)
        for name in ("simclr", "simclr_cifar", "simclr_cifar:2", "simclr_cifar@1-1")
    }
    assert len({view.sum().item() for view in seen.values()}) == 4
    with pytest.raises(LimbeckError, match="there is no view 'simclr@0-1'"):
        apply("simclr@0-1", x, seed=0, epochs=at, indices=at, flip=False)
    with pytest.raises(LimbeckError, match="Did you mean 'simclr'"):
        apply("simclrr", x, seed=0, epochs=at, indices=at, flip=False)
