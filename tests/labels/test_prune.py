"""Which samples of a training set are kept."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.labels import Labels
from limbeck.labels.prune import keep_hardest

CLASSES = st.lists(st.integers(0, 3), min_size=1, max_size=30)


def kept(scores: torch.Tensor, classes: list[int], fraction: float, **options: bool) -> set[int]:
    found = keep_hardest(Labels(torch.tensor(classes)), scores, fraction, **options)
    assert set(found.weights.tolist()) <= {0.0, 1.0}
    return set(found.weights.nonzero()[:, 0].tolist())


@settings(deadline=None)
@given(CLASSES, st.floats(0.01, 1), st.integers(0, 99), st.booleans())
def test_count_is_the_floor_and_at_least_one(classes, fraction, seed, balanced):
    scores = torch.rand(len(classes), generator=torch.Generator().manual_seed(seed))
    count = max(1, math.floor(fraction * len(classes) + 1e-9))
    assert len(kept(scores, classes, fraction, balanced=balanced)) == count


def test_floor_is_not_lost_to_rounding():
    assert 0.29 * 100 < 29
    assert len(kept(torch.rand(100), [0] * 100, 0.29)) == 29
    assert kept(torch.tensor([0.1, 0.3, 0.2]), [0, 0, 0], 0.01) == {1}


@settings(deadline=None)
@given(CLASSES, st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 99), st.booleans())
def test_a_larger_fraction_keeps_what_a_smaller_one_keeps(classes, one, other, seed, balanced):
    scores = torch.rand(len(classes), generator=torch.Generator().manual_seed(seed))
    small, large = (kept(scores, classes, f, balanced=balanced) for f in sorted((one, other)))
    assert small <= large


@settings(deadline=None)
@given(CLASSES, st.floats(0.01, 1), st.integers(0, 99))
def test_hardest_are_kept_and_no_class_is_left_out(classes, fraction, seed):
    """Against sorting; where that loses a class its hardest sample takes the place of the easiest spare one."""
    scores = torch.rand(len(classes), generator=torch.Generator().manual_seed(seed))
    found = kept(scores, classes, fraction)
    order = np.argsort(-scores.numpy(), kind="stable").tolist()
    plain = order[: len(found)]
    present = {classes[at] for at in plain}
    if present == set(classes):
        assert found == set(plain)
    elif len(found) >= len(set(classes)):
        assert {classes[at] for at in found} == set(classes)
        firsts = {next(at for at in order if classes[at] == number) for number in set(classes)}
        others = [at for at in order if at not in firsts]
        assert found == firsts | set(others[: len(found) - len(firsts)])
    else:
        assert len({classes[at] for at in found}) == len(found)


@settings(deadline=None)
@given(CLASSES, st.floats(0.05, 1), st.integers(0, 99))
def test_balanced_keeps_the_same_share_of_every_class(classes, fraction, seed):
    scores = torch.rand(len(classes), generator=torch.Generator().manual_seed(seed))
    found = kept(scores, classes, fraction, balanced=True)
    if len(found) < len(set(classes)):
        return
    for number in set(classes):
        members = [at for at, label in enumerate(classes) if label == number]
        share = len(found) / len(classes) * len(members)
        mine = [at for at in members if at in found]
        # Sainte-Laguë, after one sample for every class: off by less than the number of classes.
        assert abs(len(mine) - share) < len(set(classes))
        assert set(mine) == set(sorted(members, key=lambda at: -float(scores[at]))[: len(mine)])


def test_balanced_is_exact_where_it_can_be():
    classes = [0] * 60 + [1] * 30 + [2] * 10
    scores = torch.arange(100.0)  # by score alone 30 samples would all be of the classes 1 and 2
    found = kept(scores, classes, 0.3, balanced=True)
    assert [sum(classes[at] == number for at in found) for number in range(3)] == [18, 9, 3]
    assert len([at for at in kept(scores, classes, 0.3) if classes[at] == 0]) == 1


def test_balanced_favours_neither_large_nor_small_classes():
    """9 of 20 + 3: shares of 7.8 and 1.2. Sainte-Laguë gives 8 and 1; rounding up for the small one 7 and 2."""
    found = kept(torch.rand(23, generator=torch.Generator().manual_seed(0)), [0] * 20 + [1] * 3, 9 / 23, balanced=True)
    assert sum(at >= 20 for at in found) == 1
    assert len(found) == 9


def test_infinite_is_hardest_and_ties_go_by_position():
    scores = torch.tensor([2.0, math.inf, 2.0, 1.0])
    assert kept(scores, [0] * 4, 0.25) == {1}
    assert kept(scores, [0] * 4, 0.5) == {0, 1}


def test_what_was_out_stays_out_and_does_not_count():
    labels = Labels(torch.tensor([0, 0, 1, 1]), torch.tensor([0.0, 1.0, 0.0, 2.0]))
    assert keep_hardest(labels, torch.tensor([9.0, 1.0, 8.0, 2.0]), 0.5).weights.tolist() == [0.0, 0.0, 0.0, 2.0]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_fraction_out_of_range(fraction):
    with pytest.raises(LimbeckError, match="fraction is"):
        keep_hardest(Labels(torch.tensor([0])), torch.ones(1), fraction)


def test_scores_that_do_not_fit():
    labels = Labels(torch.tensor([0, 1]))
    with pytest.raises(LimbeckError, match="3 scores"):
        keep_hardest(labels, torch.ones(3), 0.5)
    with pytest.raises(LimbeckError, match="sample 1 is NaN"):
        keep_hardest(labels, torch.tensor([1.0, math.nan]), 0.5)
    with pytest.raises(LimbeckError, match="no samples"):
        keep_hardest(Labels(torch.tensor([0]), torch.zeros(1)), torch.ones(1), 0.5)
