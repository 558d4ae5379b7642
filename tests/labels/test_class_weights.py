import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.labels.class_weights import effective_number_weights

COUNTS = st.lists(st.integers(1, 100_000), min_size=1, max_size=6)
FEW = settings(max_examples=50, deadline=None)


def test_worked_example() -> None:
    """Raw weights 2.541e-4 and 2.005e-2 for 5,000 and 50 samples at 0.9999, brought to the sum 2."""
    raw = [1e-4 / (1 - 0.9999**5000), 1e-4 / (1 - 0.9999**50)]
    assert raw == pytest.approx([2.541e-4, 2.005e-2], rel=5e-4)
    found = effective_number_weights(torch.tensor([5000, 50]), 0.9999).tolist()
    assert found == pytest.approx([2 * value / sum(raw) for value in raw], rel=1e-6)
    assert found == pytest.approx([0.0250, 1.9750], abs=5e-5)


@FEW
@given(COUNTS, st.floats(0.01, 0.9999))
def test_is_the_inverse_of_the_geometric_sum(counts: list[int], beta: float) -> None:
    # 1 + beta + ... + beta^(n - 1), the effective number, summed up one by one; later terms vanish.
    powers = beta ** np.arange(min(max(counts), 400_000), dtype=np.float64)
    inverse = 1 / np.array([powers[:count].sum() for count in counts])
    expected = inverse * len(counts) / inverse.sum()
    np.testing.assert_allclose(effective_number_weights(torch.tensor(counts), beta), expected, rtol=1e-6)


@FEW
@given(COUNTS)
def test_limits(counts: list[int]) -> None:
    sizes = torch.tensor(counts)
    assert effective_number_weights(sizes, 0).tolist() == [1.0] * len(counts)
    inverse = (1 / sizes.double()) * len(counts) / (1 / sizes.double()).sum()
    torch.testing.assert_close(effective_number_weights(sizes, 1).double(), inverse, rtol=1e-6, atol=0)
    # Near 1 it is near the limit: (1 - b) n of the effective number is missing, at most 1e-5 x ln.
    near = effective_number_weights(sizes, 1 - 1e-10).double()
    torch.testing.assert_close(near, inverse, rtol=2e-5, atol=0)


@FEW
@given(st.integers(1, 10**6), st.integers(1, 8), st.floats(0, 1))
def test_equal_classes_weigh_the_same(count: int, classes: int, beta: float) -> None:
    weights = effective_number_weights(torch.tensor([count] * classes), beta)
    torch.testing.assert_close(weights, torch.ones(classes), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("counts", "beta", "message"),
    [([3, 1], 1.5, "beta is 1.5"), ([3, 0], 0.9, "at least 1 sample"), ([], 0.9, "at least 1 sample")],
)
def test_wrong_input(counts: list[int], beta: float, message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        effective_number_weights(torch.tensor(counts, dtype=torch.int64), beta)
