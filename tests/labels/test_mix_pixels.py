"""Mixing with one label a pixel: pictures hold the number of what they are made of."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.labels import Labels, classmix, cutmix_pixels, paste, top_k


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(n: int, height: int = 12, width: int = 16, first: int = 0) -> torch.Tensor:
    """Image i holds the number ``first`` + i everywhere."""
    return (first + torch.arange(float(n))).reshape(n, 1, 1, 1).expand(n, 2, height, width).clone()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), classes=st.integers(1, 7), ignored=st.booleans())
def test_classmix_pastes_half_of_the_classes(seed: int, classes: int, ignored: bool) -> None:
    n, generator = 3, seeded(seed)
    truth = torch.randint(classes, (n, 12, 16), generator=generator)
    if ignored:
        truth[:, :4] = -1
    weight = (truth >= 0).float()
    own = Labels(torch.full((n, 12, 16), 9), torch.full((n, 12, 16), 0.25))
    images, labels = classmix(numbered(n), own, numbered(n, first=10), Labels(truth, weight), 8, seeded(seed))
    pasted = images[:, 0] >= 10
    for i in range(n):
        there = set(truth[i][truth[i] >= 0].tolist())
        chosen = set(truth[i][pasted[i]].tolist())
        assert len(chosen) == -(-len(there) // 2)
        assert chosen <= there
        # Whole classes are pasted, and nothing else.
        expected = np.isin(truth[i].numpy(), sorted(chosen))
        np.testing.assert_array_equal(pasted[i].numpy(), expected)
        assert set(images[i].flatten().tolist()) <= {float(i), 10.0 + i}
    assert torch.equal(labels.target, torch.where(pasted, truth, 9))
    assert torch.equal(labels.weights, torch.where(pasted, 1.0, 0.25))


def test_every_class_is_drawn_as_often() -> None:
    truth = torch.arange(4).repeat_interleave(4).reshape(1, 4, 4).expand(400, 4, 4)
    images = torch.zeros(400, 1, 4, 4)
    mixed, _ = classmix(images, Labels(torch.zeros_like(truth)), images + 1, Labels(truth), 4, seeded(0))
    # Half of the draws, with a standard deviation of 0.025.
    assert mixed[:, 0].mean((0, 2)).sub(0.5).abs().max() < 0.1


def test_classmix_of_nothing_known_leaves_everything() -> None:
    truth = torch.full((2, 12, 16), -1)
    own = Labels(torch.ones(2, 12, 16, dtype=torch.int64))
    images, labels = classmix(
        numbered(2), own, numbered(2, first=5), Labels(truth, torch.zeros(2, 12, 16)), 3, seeded(0)
    )
    assert torch.equal(images, numbered(2))
    assert torch.equal(labels.target, own.target)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.1, 0.5, 1.0]))
def test_cutmix_is_one_box_of_the_next_image(seed: int, share: float) -> None:
    n, height, width = 4, 24, 32
    own = torch.arange(n)[:, None, None].expand(n, height, width).clone()
    weight = own + 1.0
    images, labels = cutmix_pixels(numbered(n, height, width), Labels(own, weight), seeded(seed), share)
    for i in range(n):
        other = images[i, 0] == (i + 1) % n
        assert set(images[i].flatten().tolist()) <= {float(i), float((i + 1) % n)}
        rows, columns = (torch.nonzero(other.any(dim))[:, 0] for dim in (1, 0))
        box = torch.zeros_like(other)
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        assert torch.equal(box, other)
        # Sides are whole pixels: half a pixel of each.
        assert abs(float(other.float().mean()) - share) <= 0.5 / height + 0.5 / width
    assert torch.equal(labels.target.float(), images[:, 0])
    assert torch.equal(labels.weights, labels.target + 1.0)


def test_boxes_lie_anywhere() -> None:
    n = 300
    images = torch.zeros(n, 1, 10, 10)
    images[::2] = 1
    mixed, _ = cutmix_pixels(images, Labels(torch.zeros(n, 10, 10, dtype=torch.int64)), seeded(0))
    inside = (mixed != images)[:, 0]
    assert inside.any(0).all()
    assert len({tuple(torch.nonzero(box)[0].tolist()) for box in inside}) > 10


def test_only_the_generator_decides() -> None:
    images, labels = torch.rand(3, 3, 8, 8, generator=seeded(1)), Labels(torch.zeros(3, 8, 8, dtype=torch.int64))
    before = torch.get_rng_state()
    first, second, third = (cutmix_pixels(images, labels, seeded(s))[0] for s in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    truth = Labels(torch.arange(64).reshape(1, 8, 8).expand(3, 8, 8) % 6)
    first, second, third = (classmix(images, labels, images + 1, truth, 6, seeded(s))[0] for s in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(torch.get_rng_state(), before)


def test_paste_takes_probabilities() -> None:
    region = torch.zeros(2, 12, 16, dtype=torch.bool)
    region[:, 3] = True
    p, q = (torch.rand(2, 12, 16, 3, generator=seeded(s)).softmax(-1) for s in (0, 1))
    _, labels = paste(numbered(2), Labels(p), numbered(2), Labels(q), region)
    assert torch.equal(labels.target, torch.where(region.unsqueeze(-1), q, p))


def test_errors_name_what_is_wrong() -> None:
    images, labels = numbered(2), Labels(torch.zeros(2, 12, 16, dtype=torch.int64))
    probabilities = torch.full((2, 12, 16, 3), 1 / 3)
    with pytest.raises(LimbeckError, match=r"labels have shape \[2\], must be one a pixel: \[2, 12, 16\]"):
        cutmix_pixels(images, Labels(torch.zeros(2, dtype=torch.int64)), seeded(0))
    with pytest.raises(LimbeckError, match="share is 0"):
        cutmix_pixels(images, labels, seeded(0), share=0)
    with pytest.raises(LimbeckError, match="cuts along class indices"):
        classmix(images, labels, images, Labels(probabilities), 3, seeded(0))
    with pytest.raises(LimbeckError, match="both labels must be"):
        paste(images, labels, images, Labels(probabilities), torch.zeros(2, 12, 16, dtype=torch.bool))
    with pytest.raises(LimbeckError, match="not with a top k"):
        cutmix_pixels(images, Labels(top_k(probabilities, 1)), seeded(0))
