import math

import pytest
import torch

from limbeck.data.tta import SOFT, STRONG, Ranges, katana


def _smooth(count: int = 2, channels: int = 3, size: int = 32) -> torch.Tensor:
    small = torch.rand(count, channels, 6, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, (size, size), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 33])
def test_shape_and_range_on_extreme_images(channels: int, size: int) -> None:
    for level in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        views = katana(torch.full((3, channels, size, size), level))
        assert views.shape == (3, channels, size, size)
        assert views.isfinite().all()
        assert ((views >= 0) & (views <= 1)).all()


def test_one_draw_a_call_from_the_global_generator() -> None:
    """Equal images of a call differ by noise of 0.005 only; calls differ, and the seed decides them."""
    images = _smooth(1).repeat(4, 1, 1, 1)
    torch.manual_seed(0)
    first, second = katana(images), katana(images)
    torch.manual_seed(0)
    again = katana(images)
    assert torch.equal(again, first)
    between = (first[0] - first[1]).std().item()
    assert between == pytest.approx(0.005 * math.sqrt(2), rel=0.15)  # a few values are clipped
    assert (first - second).abs().mean() > 0.02


def test_mirrors_half_of_the_time_and_only_where_allowed() -> None:
    ramp = torch.linspace(0.3, 0.7, 32).expand(1, 1, 32, 32)
    torch.manual_seed(0)
    rising = [bool(view[..., 24:].mean() > view[..., :8].mean()) for view in (katana(ramp) for _ in range(60))]
    assert 15 < sum(rising) < 45  # 30, give or take 4 standard deviations
    assert all(bool((view := katana(ramp, flip=False))[..., 24:].mean() > view[..., :8].mean()) for _ in range(20))


def test_borders_are_continued_and_moves_are_small() -> None:
    """A white image stays grey of one level: nothing black is drawn in from outside."""
    torch.manual_seed(0)
    for _ in range(20):
        view = katana(torch.full((1, 1, 32, 32), 0.5))
        assert view.std() < 0.006
    square = torch.zeros(1, 1, 33, 33)
    square[..., 15:18, 15:18] = 1
    for _ in range(20):
        view = katana(square)[0, 0]
        view = (view - view.median()).clamp_min(0) ** 2
        rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
        # 1/16 of the padded 65 pixels, and one for rounding.
        assert abs(float((view * rows).sum() / view.sum()) - 16) < 5.1
        assert abs(float((view * columns).sum() / view.sum()) - 16) < 5.1


@pytest.mark.parametrize(("ranges", "brightness", "gamma"), [(STRONG, 0.4, 0.3), (SOFT, 0.2, 0.15)])
def test_brightness_range(ranges: Ranges, brightness: float, gamma: float) -> None:
    """A flat grey image has no contrast, saturation or hue: brightness and gamma only, in either order."""
    torch.manual_seed(0)
    levels = torch.tensor([katana(torch.full((1, 1, 8, 8), 0.4), ranges=ranges).mean() for _ in range(200)])
    dark, bright, up, down = 1 - brightness, 1 + brightness, 1 + gamma, 1 - gamma
    low = min((dark * 0.4) ** up, dark * 0.4**up)
    high = max((bright * 0.4) ** down, bright * 0.4**down)
    assert low - 0.01 <= levels.min() < low + 0.06
    assert high - 0.1 < levels.max() <= high + 0.01
