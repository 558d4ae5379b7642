import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.labels.calibrate import DISCARD, KEEP, SOFTEN, calibrate, certainty_bands


def random_labels(rows: int = 30, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, classes, generator=generator).mul(2).softmax(1), torch.randint(
        classes, (rows,), generator=generator
    )


def test_bands_of_four_scores() -> None:
    scores = torch.tensor([0.02, 0.2, 0.6, 0.99])
    bands = certainty_bands(scores, 0.05, 0.3, 0.98)
    assert bands.tolist() == [DISCARD, SOFTEN, KEEP, DISCARD]
    probabilities, truth = random_labels(4)
    labels = calibrate(probabilities, truth, bands, 0.1)
    assert labels.weights.tolist() == [0, 1, 1, 0]
    expected = torch.full((10,), 0.01)
    expected[truth[1]] = 0.91
    torch.testing.assert_close(labels.probabilities(10)[1], expected)
    assert torch.equal(labels.probabilities(10)[2], probabilities[2])


def test_limits() -> None:
    probabilities, truth = random_labels()
    scores = probabilities.max(1).values
    same = calibrate(probabilities, truth, certainty_bands(scores, 0, 0, 1))
    assert torch.equal(same.probabilities(10), probabilities)
    assert same.weights.all()
    smoothed = calibrate(probabilities, truth, certainty_bands(scores, 0, 2, 2), 0.3)
    smooth = torch.nn.functional.one_hot(truth, 10) * 0.7 + 0.03
    torch.testing.assert_close(smoothed.probabilities(10), smooth)
    assert not calibrate(probabilities, truth, certainty_bands(scores, 1.1, 1.1, 2)).weights.any()
    with pytest.raises(LimbeckError, match=r"low is 0\.5 and middle 0\.4; they must rise"):
        certainty_bands(scores, 0.5, 0.4, 1)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_thresholds_belong_to_the_band_above_them_but_the_top(score: float, a: float, b: float, c: float) -> None:
    low, middle, top = sorted((a, b, c))
    (band,) = certainty_bands(torch.tensor([score], dtype=torch.float64), low, middle, top).tolist()
    if score < low or score > top:
        assert band == DISCARD
    else:
        assert band == (SOFTEN if score < middle else KEEP)
