import numpy as np
import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.labels.boxes import Detections, box_jitter_uncertainty, confident_boxes, jitter_boxes

BOXES = torch.tensor([[10.0, 20.0, 50.0, 100.0], [0.0, 0.0, 8.0, 6.0]], dtype=torch.float64)


def _draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_regressor_that_returns_its_input() -> None:
    # u is then the standard deviation of the noise in parts of the side: 0.06 on average, so above 0.02. The mean over
    # 4 coordinates of the spread of 2,000 copies is off by about 0.06 / sqrt(2 * 2000 * 4); 5 such are allowed.
    u = box_jitter_uncertainty(jitter_boxes(BOXES, 2000, 0.06, _draws()))
    assert torch.allclose(u, torch.full((2,), 0.06, dtype=torch.float64), atol=5 * 0.06 / (16000**0.5))


def test_ten_copies_of_an_unmoved_box_are_rejected_on_average() -> None:
    many = BOXES[:1].expand(500, 4)
    u = box_jitter_uncertainty(jitter_boxes(many, 10, 0.06, _draws()))
    assert (u > 0.02).all()


def test_a_regressor_that_always_returns_the_same_box() -> None:
    assert torch.equal(box_jitter_uncertainty(BOXES.expand(10, 2, 4)), torch.zeros(2, dtype=torch.float64))


def test_no_jitter_no_uncertainty() -> None:
    copies = jitter_boxes(BOXES, 10, 0.0, _draws())
    assert torch.equal(copies, BOXES.expand(10, 2, 4))
    assert not box_jitter_uncertainty(copies).any()


def test_jitter_is_in_parts_of_each_side() -> None:
    noise = (jitter_boxes(BOXES, 4000, 0.1, _draws()) - BOXES).std(0)
    sides = torch.tensor([[40.0, 80.0, 40.0, 80.0], [8.0, 6.0, 8.0, 6.0]], dtype=torch.float64)
    # The relative error of a standard deviation over n draws is 1 / sqrt(2 n); 5 of them.
    torch.testing.assert_close(noise, 0.1 * sides, rtol=5 / 8000**0.5, atol=0)


def test_thin_boxes_count_as_a_pixel() -> None:
    flat = torch.tensor([[5.0, 5.0, 5.0, 5.0]], dtype=torch.float64)
    copies = jitter_boxes(flat, 2000, 0.5, _draws())
    torch.testing.assert_close(copies.std(0), torch.full((1, 4), 0.5, dtype=torch.float64), rtol=0.08, atol=0)
    # Unit steps of a box without area: standard deviation over one pixel.
    steps = torch.tensor([0.0, 1.0])[:, None, None].double() * torch.ones(1, 4, dtype=torch.float64)
    assert float(box_jitter_uncertainty(steps)[0]) == pytest.approx(0.5**0.5)


def test_uncertainty_against_numpy() -> None:
    refined = np.random.default_rng(0).normal([0, 0, 30, 60], 3, size=(10, 5, 4))
    mean = refined.mean(0)
    w, h = mean[:, 2] - mean[:, 0], mean[:, 3] - mean[:, 1]
    expected = (refined.std(0, ddof=1) / np.stack([w, h, w, h], 1)).mean(1)
    found = box_jitter_uncertainty(torch.from_numpy(refined))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)  # the same sums in another order


def test_nothing_to_jitter() -> None:
    empty = torch.zeros(3, 0, 4)
    assert box_jitter_uncertainty(jitter_boxes(empty, 10, 0.06)).shape == (3, 0)


def test_only_scores_above_the_threshold_are_kept() -> None:
    labels, scores = torch.tensor([[1, 0, 2], [0, -1, -1]]), torch.tensor([[0.95, 0.9, 0.2], [0.91, 0.99, 0.0]])
    kept = confident_boxes(Detections(torch.zeros(2, 3, 4), labels, scores), 0.9)
    assert torch.equal(kept.labels, torch.tensor([[1, -1, -1], [0, -1, -1]]))
    assert kept.scores is scores


def test_wrong_jitter() -> None:
    with pytest.raises(LimbeckError, match=r"jitter_times is 1; .* at least 2"):
        jitter_boxes(BOXES, 1, 0.06)
    with pytest.raises(LimbeckError, match=r"jitter_scale is -0\.1; it must be at least 0"):
        jitter_boxes(BOXES, 10, -0.1)
