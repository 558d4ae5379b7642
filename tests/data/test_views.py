"""Views: randomness that hangs on (seed, epoch, index, view) only."""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as reference

from limbeck.data.views import PIECE, apply
from limbeck.errors import LimbeckError

RANDOM = ["weak", "strong", "mild", "crop", "simclr", "simclr_cifar@0.3-1"]


def images(count=24, channels=3, height=12, width=16):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def view(name, x, seed=0, epoch=0, indices=None, flip=True):
    at = torch.arange(len(x)) if indices is None else indices
    return apply(name, x, seed=seed, epochs=torch.full((len(x),), epoch), indices=at, flip=flip)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (12, 16), (2, 9), (1, 1)])
def test_views_keep_shape_and_range(name, channels, size):
    x = images(64, channels, *size)
    seen = view(name, x)
    assert seen.shape == x.shape
    assert seen.dtype == x.dtype
    assert torch.isfinite(seen).all()
    assert seen.min() >= 0
    assert seen.max() <= 1


@pytest.mark.parametrize("name", RANDOM)
def test_views_are_functions_of_seed_epoch_index_and_name(name):
    x = images()
    first = view(name, x)
    assert torch.equal(view(name, x), first)
    for other in (
        view(name, x, seed=1),
        view(name, x, epoch=1),
        view(name, x, indices=torch.arange(24) + 100),
        view(f"{name}:2", x),
    ):
        changed = (other != first).flatten(1).any(1)
        assert changed.float().mean() > 0.5  # some draws coincide: small shifts, or the same two operations


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RANDOM)
def test_the_rest_of_the_batch_does_not_matter(name, channels):
    x = images(96, channels)
    epochs, indices = torch.arange(96) % 5, torch.arange(96) * 3
    together = apply(name, x, seed=4, epochs=epochs, indices=indices, flip=True)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    shuffled = apply(name, x[order], seed=4, epochs=epochs[order], indices=indices[order], flip=True)
    assert torch.equal(shuffled, together[order])
    for row in range(96):
        one = slice(row, row + 1)
        alone = apply(name, x[one], seed=4, epochs=epochs[one], indices=indices[one], flip=True)
        assert torch.equal(alone, together[one]), row


@pytest.mark.parametrize("name", ["weak", "strong", "crop"])
def test_images_are_worked_on_in_pieces(name):
    x = images(3, 3, 900, 800)
    assert x[0].numel() > PIECE  # so that each is a piece
    together = view(name, x)
    for row in range(3):
        at = torch.tensor([row])
        assert torch.equal(view(name, x[at], indices=at), together[at])


@pytest.mark.parametrize("name", RANDOM)
def test_global_generators_are_untouched_and_unread(name):
    x = images()
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    first = view(name, x)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))  # noqa: NPY002
    assert random.getstate() == before[2]
    torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    assert torch.equal(view(name, x), first)


@pytest.mark.parametrize("name", [*RANDOM, "none"])
def test_the_images_themselves_are_unchanged(name):
    x = images()
    kept = x.clone()
    view(name, x)
    assert torch.equal(x, kept)


def test_none_is_free():
    x = images()
    assert view("none", x) is x


def test_weak_is_a_shift_with_reflected_border_and_a_mirror():
    x = images(200, 1, 16, 8)
    padded = F.pad(x, (1, 1, 2, 2), mode="reflect")
    seen = view("weak", x)
    found = []
    for row in range(200):
        candidates = {
            (top, left, mirrored): padded[row, :, top : top + 16, left : left + 8].flip(-1)
            if mirrored
            else padded[row, :, top : top + 16, left : left + 8]
            for top in range(5)
            for left in range(3)
            for mirrored in (False, True)
        }
        matching = [key for key, image in candidates.items() if torch.equal(image, seen[row])]
        assert len(matching) == 1
        found += matching
    assert len(set(found)) == 30  # every one of the 30 occurs among 200: missing one has probability 0.03 in all
    plain = view("weak", x, flip=False)
    assert not torch.equal(plain, seen)
    unmirrored = torch.where(torch.tensor([key[2] for key in found])[:, None, None, None], seen.flip(-1), seen)
    assert torch.equal(plain, unmirrored)


def test_crop_covers_its_range_of_areas_and_aspects():
    # On a ramp a crop is a ramp whose slope tells how much of the width it took.
    ramp = torch.linspace(0, 1, 32).expand(400, 1, 32, 32)
    seen = view("crop", ramp, flip=False)
    across = (seen[:, 0, 16, 20] - seen[:, 0, 16, 11]) / (9 / 31)
    down = view("crop", ramp.transpose(2, 3), flip=False)[:, 0]
    assert 0.2 < across.min() < 0.4  # sqrt(0.08 * 3 / 4) = 0.24 of the width at least
    assert 0.9 < across.max() <= 1.001
    assert 0.5 < (across / ((down[:, 20, 16] - down[:, 11, 16]) / (9 / 31))).min() < 1  # width over height, from 3/4


def test_crop_is_the_resized_crop_of_torchvision():
    x = images(1, 3, 16, 16)
    seen = view("crop", x, flip=False)[0]
    boxes = (
        (top, left, high, wide)
        for high in range(1, 17)
        for wide in range(1, 17)
        for top in range(17 - high)
        for left in range(17 - wide)
        if 0.07 * 256 <= high * wide <= 256 and 0.6 < wide / high < 1.6
    )
    assert any(
        torch.equal(reference.resized_crop(x[0], *box, [16, 16], antialias=True).clamp(0, 1), seen) for box in boxes
    )


def test_strong_is_stronger_than_weak():
    x = images(200)
    grey = (view("strong", x) == 0.5).all(1).float().mean((1, 2))
    # Half the height and width, less where it reaches over the border: at least a quarter of that.
    assert grey.min() >= 1 / 16
    assert 0.1 < grey.median() <= 0.3


@pytest.mark.parametrize(
    ("name", "hint"), [("weka", "Did you mean 'weak'"), ("strong:", "known"), ("strong:x", "known")]
)
def test_unknown_views_are_refused(name, hint):
    with pytest.raises(LimbeckError, match=hint):
        view(name, images())
