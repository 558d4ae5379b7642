import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.labels.certainty import certainty, certainty_ratio, surer


def test_the_papers_example() -> None:
    local, received = torch.tensor([[0.7, 0.3]]), torch.tensor([[0.4, 0.6]])
    # float32 holds 0.7 to 6e-8, its square deviation to the same.
    assert certainty(local).item() == pytest.approx(0.04, abs=1e-7)
    assert certainty(received).item() == pytest.approx(0.01, abs=1e-7)
    assert surer(certainty(local), certainty(received)).item()
    assert certainty_ratio(certainty(received), certainty(local)).item() == pytest.approx(0.25, abs=1e-5)


def test_variance_and_maximum_may_disagree() -> None:
    two, one = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.6, 0.2, 0.2])
    assert certainty(two).item() == pytest.approx(0.0556, abs=5e-5)
    assert certainty(one).item() == pytest.approx(0.0356, abs=5e-5)
    assert certainty(one, "max") > certainty(two, "max")


def test_for_two_classes_all_measures_order_alike() -> None:
    p = torch.linspace(0, 1, 41)
    scores = torch.stack([p, 1 - p], -1)
    far = (p - 0.5).abs()
    for by in ("variance", "entropy", "max"):
        found = certainty(scores, by)
        above = far[:, None] > far[None] + 1e-6
        assert bool((found[:, None] > found[None])[above].all())


@pytest.mark.parametrize(("by", "most"), [("variance", 0.1875), ("entropy", math.log(4)), ("max", 1.0)])
def test_ends(by: str, most: float) -> None:
    sure, unsure = torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.full((4,), 0.25)
    assert certainty(sure, by).item() == pytest.approx(most, abs=1e-6)
    assert certainty(unsure, by).item() == pytest.approx(0.25 if by == "max" else 0.0, abs=1e-6)


def test_nothing_over_nothing_is_one() -> None:
    assert certainty_ratio(torch.zeros(2), torch.tensor([0.0, 2.0])).tolist() == [1.0, 0.0]


def test_of_equals_the_first_is_believed() -> None:
    assert surer(torch.tensor([0.2]), torch.tensor([0.2])).item()


def test_unknown_measure() -> None:
    with pytest.raises(LimbeckError, match=r"unknown certainty 'varince'\. Did you mean 'variance'"):
        certainty(torch.ones(2) / 2, "varince")
