import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.labels import Labels, cutmix, mixup
from limbeck.labels.mix_rows import blend, cutmix_images, draw_cutmix, draw_mixup, paste_boxes


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), alpha=st.sampled_from([0.2, 1, 8.0]))
def test_rows_of_a_draw_give_the_mixed_batch(seed: int, alpha: float) -> None:
    """What is drawn once and applied by rows is what mixup and CutMix do at once."""
    images, labels = torch.rand(5, 2, 6, 9, generator=seeded(1)), Labels(torch.arange(5))
    draw = draw_mixup(5, alpha, seeded(seed))
    mixed = blend(images, images[draw.partner], torch.full((5,), draw.share))
    # The share is float32 here and float64 there.
    torch.testing.assert_close(mixed, mixup(images, labels, 5, alpha, seeded(seed))[0], rtol=0, atol=2e-7)
    cut = draw_cutmix(5, (6, 9), alpha, seeded(seed))
    pasted = paste_boxes(images, images[cut.partner], torch.tensor([cut.box] * 5))
    assert torch.equal(pasted, cutmix(images, labels, 5, alpha, seeded(seed))[0])
    top, bottom, left, right = cut.box
    assert cut.share == pytest.approx(1 - (bottom - top) * (right - left) / 54)
    assert sorted(cut.partner.tolist()) == list(range(5))


def test_every_row_has_its_own_box_and_share() -> None:
    images, others = torch.zeros(3, 1, 4, 5), torch.ones(3, 1, 4, 5)
    boxes = torch.tensor([[0, 0, 0, 0], [1, 3, 2, 5], [0, 4, 0, 5]])
    expected = np.zeros((3, 4, 5))
    for row, (top, bottom, left, right) in zip(expected, boxes.tolist(), strict=True):
        row[top:bottom, left:right] = 1
    np.testing.assert_array_equal(paste_boxes(images, others, boxes)[:, 0].numpy(), expected)
    shares = torch.tensor([1.0, 0.25, 0.0])
    assert blend(images, others, shares).mean((1, 2, 3)).tolist() == [0.0, 0.75, 1.0]


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan")])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(LimbeckError, match="alpha is"):
        draw_mixup(4, alpha, seeded(0))
    with pytest.raises(LimbeckError, match="alpha is"):
        draw_cutmix(4, (8, 8), alpha, seeded(0))


def test_cutmix_of_images_alone_is_that_of_images_with_labels() -> None:
    images = torch.rand(6, 2, 8, 10, generator=seeded(0))
    alone = cutmix_images(images, 1.0, seeded(3))
    labels = Labels(torch.arange(6))
    assert torch.equal(alone, cutmix(images, labels, 6, 1.0, seeded(3))[0])
    assert not torch.equal(alone, images)
