"""Class sizes with a long tail."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.load import load
from limbeck.data.long_tail import tail_sizes
from limbeck.errors import LimbeckError

NAMES = [f"class {number}" for number in range(40)]


def sizes(available, ratio, tail="exponential"):
    return tail_sizes(available, ratio, tail, NAMES[: len(available)])


def test_exponential_tail_of_cifar():
    # CIFAR-10-LT with imbalance 100 (arXiv 1901.05555).
    assert sizes([5000] * 10, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_pareto_sizes_are_the_quantiles_of_a_pareto_distribution():
    found = np.array(sizes([100_000] * 20, 50, "pareto"))
    shape = np.log(20) / np.log(50)
    # Of a Pareto distribution a share of (size / smallest)^-shape is larger than size.
    beyond = (found / found[-1]) ** -shape * 20
    np.testing.assert_allclose(beyond, np.arange(1, 21), rtol=1e-3)  # sizes are whole numbers from 2000 on


def test_pareto_falls_faster_at_first():
    exponential, pareto = (sizes([1000] * 10, 100, tail) for tail in ("exponential", "pareto"))
    assert (exponential[0], exponential[-1]) == (pareto[0], pareto[-1]) == (1000, 10)
    assert all(much > few for much, few in zip(exponential[1:-1], pareto[1:-1], strict=True))


@given(
    st.lists(st.integers(400, 500), min_size=2, max_size=40),
    st.floats(1, 400),
    st.sampled_from(["exponential", "pareto"]),
)
def test_sizes_fall_and_keep_the_ratio(available, ratio, tail):
    found = sizes(available, ratio, tail)
    assert all(size <= there for size, there in zip(found, available, strict=True))
    assert sorted(found, reverse=True) == found
    assert any(there - size < 1 for size, there in zip(found, available, strict=True)), "could be larger"
    # Both are rounded down, by less than 1; slack for ratios that fall on a whole number.
    assert found[0] / (found[-1] + 1) <= ratio * (1 + 1e-9)
    assert ratio <= (found[0] + 1) / found[-1] * (1 + 1e-9)


def test_one_class_and_no_imbalance_keep_everything():
    for tail in ("exponential", "pareto"):
        assert sizes([7], 100, tail) == [7]
        assert sizes([7, 9, 8], 1, tail) == [7, 7, 7]


def test_a_class_without_a_sample_is_refused():
    with pytest.raises(LimbeckError, match=r"imbalance 100 leaves no sample of class 'class 1' .*\[50, 0\]"):
        sizes([50, 50], 100)


def test_it_is_an_option_of_every_image_source():
    data = load("digits", seed=0, imbalance=20, tail="pareto")
    counts = data.train.labels.bincount()
    assert counts[0] == counts.max()
    assert 18 <= counts[0] / counts[-1] <= 24  # the smallest class has 5 to 7 samples: rounding
    assert data.validation.labels.bincount().min() > 5, "only the training data has a tail"
