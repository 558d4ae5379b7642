import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from limbeck.data.corruptions import CORRUPTIONS, corrupt
from limbeck.errors import LimbeckError


def _images(count: int = 6, channels: int = 1, size: int = 12) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def _of(name: str, images: torch.Tensor, severity: int = 3, seed: int = 0, first: int = 0) -> torch.Tensor:
    return corrupt(name, images, severity, seed=seed, indices=torch.arange(first, first + len(images)))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_corrupted_by_itself(name: str, channels: int) -> None:
    """A function of (seed, index, corruption) and the image: not of its neighbours, nor of any generator."""
    images = _images(channels=channels)
    before = images.clone()
    torch.manual_seed(1)
    whole = _of(name, images)
    torch.manual_seed(2)
    alone = torch.cat([_of(name, images[i : i + 1], first=i) for i in range(len(images))])
    assert torch.equal(whole, alone)
    assert torch.equal(images, before)
    assert whole.shape == images.shape
    assert whole.dtype == torch.float32
    assert ((whole >= 0) & (whole <= 1)).all()
    assert not torch.equal(whole, images)
    random = CORRUPTIONS[name][2] != 0
    assert torch.equal(_of(name, images, seed=1), whole) is not random
    assert torch.equal(_of(name, images, first=100), whole) is not random


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_moves_images_further(name: str) -> None:
    # Smooth images, as photographs are: pixelated noise is no further away than noise.
    images = torch.nn.functional.interpolate(_images(16, size=5), (40, 40), mode="bicubic").clamp(0, 1)
    distances = [(_of(name, images, severity) - images).square().mean().item() for severity in range(1, 6)]
    assert distances == sorted(distances)
    assert len(set(distances)) == 5


def test_gaussian_noise() -> None:
    """0.08 at severity 1; grey of 0.5 is 6 standard deviations away from the ends."""
    noise = (_of("gaussian_noise", torch.full((50, 1, 20, 20), 0.5), severity=1) - 0.5).double().flatten()
    # 20,000 draws: 4 standard errors.
    assert noise.mean().item() == pytest.approx(0, abs=4 * 0.08 / math.sqrt(20_000))
    assert noise.std().item() == pytest.approx(0.08, abs=4 * 0.08 / math.sqrt(40_000))
    assert stats.kstest(noise.numpy() / 0.08, "norm").pvalue > 1e-4


@pytest.mark.parametrize("severity", [1, 5])
def test_shot_noise_counts_photons(severity: int) -> None:
    photons = {1: 60, 5: 3}[severity]
    counts = (_of("shot_noise", torch.full((20, 1, 20, 20), 0.25), severity) * photons).double().flatten()
    assert torch.allclose(counts, counts.round(), atol=1e-4)
    kept = np.round(counts.numpy()).astype(int)
    expected = stats.poisson.pmf(np.arange(photons + 1), photons / 4)
    expected[-1] += stats.poisson.sf(photons, photons / 4)  # clipped to white
    observed = np.bincount(kept, minlength=photons + 1)
    # 8,000 draws: each frequency within 5 standard errors, and one count.
    errors = 5 * np.sqrt(8000 * expected * (1 - expected)) + 1
    assert (np.abs(observed - 8000 * expected) <= errors).all()
    assert (_of("shot_noise", torch.zeros(1, 1, 4, 4)) == 0).all()


def test_impulse_noise() -> None:
    """27% of the values at severity 5, half of them black and half white."""
    values = _of("impulse_noise", torch.full((20, 3, 20, 20), 0.5), severity=5)
    shares = [(values == level).double().mean().item() for level in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.135, 0.73, 0.135], abs=5 * 0.5 / math.sqrt(24_000))


def test_gaussian_blur_equals_scipy() -> None:
    images = _images(2, 3, 32)
    found = _of("gaussian_blur", images, severity=5)
    # sigma is a 32nd of the size, cut at three of it; borders repeated.
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, 1.0, 1.0), mode="nearest", radius=(0, 0, 3, 3))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_pointwise_corruptions() -> None:
    images = _images(3, 3)
    x = images.double().numpy()
    mean = x.mean((2, 3), keepdims=True)
    expected = {
        "contrast": mean + 0.2 * (x - mean),
        "brightness": np.minimum(x + 0.3, 1),
        "invert_gamma": 1 - (1 - x) ** 2,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(_of(name, images).numpy(), values, atol=1e-6)


def test_pixelate_takes_means_of_blocks() -> None:
    images = _images(2, 1, 16)
    found = _of("pixelate", images, severity=5)
    blocks = images.view(2, 1, 4, 4, 4, 4).mean((3, 5))
    torch.testing.assert_close(found, blocks.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_rotation_to_both_sides_by_its_angle() -> None:
    """The line from the centre to the right edge ends above or below it by tan(30 degrees)."""
    images = torch.zeros(40, 1, 41, 41)
    images[:, 0, 20, 20:] = 1
    found = _of("rotation", images, severity=5)
    column = found[:, 0, :, 36]  # 16 pixels right of the centre
    height = (column * torch.arange(41.0)).sum(1) / column.sum(1) - 20
    # A quarter of a pixel: the line is one pixel wide.
    assert height.abs().numpy() == pytest.approx(16 * math.tan(math.radians(30)), abs=0.25)
    assert 5 < (height > 0).sum() < 35


def test_wrong_names_and_severities() -> None:
    with pytest.raises(LimbeckError, match=r"no corruption 'gausian_noise'.*Did you mean 'gaussian_noise'"):
        _of("gausian_noise", _images())
    with pytest.raises(LimbeckError, match="severity is 6"):
        _of("contrast", _images(), severity=6)
