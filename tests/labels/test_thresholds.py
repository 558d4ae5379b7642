import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.labels.thresholds import quantile_threshold


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), st.floats(0, 1))
def test_equals_numpy(values: list[float], quantile: float) -> None:
    found = quantile_threshold(torch.tensor(values), quantile, margin=0.05)
    # float64 from float32 values on both sides.
    assert found == pytest.approx(float(np.quantile(np.array(values), quantile)) - 0.05, abs=1e-12)


def test_the_authors_rule() -> None:
    """5% quantile less 0.05: of the percents from 0 to 100 it is 5%, so 0."""
    assert quantile_threshold(torch.arange(101).double() / 100) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("values", "quantile", "message"), [([], 0.5, "there are none"), ([0.5], 1.5, "quantile is")])
def test_wrong_input(values: list[float], quantile: float, message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        quantile_threshold(torch.tensor(values), quantile)
