import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.labels import Labels, one_hot, top_k
from limbeck.losses import Mean
from limbeck.metrics import coverage, precision

HIDDEN = torch.tensor([0, 1, -1, 2])
PREDICTED = torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize("target", [PREDICTED, one_hot(PREDICTED, 3), top_k(one_hot(PREDICTED, 3), 1)])
def test_by_hand(target):
    labels = Labels(target, torch.tensor([1.0, 1.0, 1.0, 0.5]))
    assert coverage(labels).value.item() == 3.5 / 4
    # Right are 1 and 0.5, of 1, 1 and 0.5 whose truth is known.
    assert precision(labels, HIDDEN).value.item() == pytest.approx(1.5 / 2.5)
    assert precision(Labels(target), HIDDEN).value.item() == pytest.approx(2 / 3)
    assert coverage(Labels(target)).value.item() == 1.0


def test_nothing_in_use_or_known_is_zero():
    out = Labels(PREDICTED, torch.zeros(4))
    assert coverage(out).value.item() == 0.0
    assert precision(out, HIDDEN) == Mean(torch.tensor(0.0), torch.tensor(0.0))
    assert precision(Labels(PREDICTED), torch.full((4,), -1)).value.item() == 0.0


def test_micro_batches_add_up():
    labels = Labels(PREDICTED, torch.tensor([1.0, 1.0, 1.0, 0.5]))
    parts = [precision(Labels(PREDICTED[i], labels.weight[i]), HIDDEN[i]) for i in (slice(0, 3), slice(3, 4))]
    whole = precision(labels, HIDDEN)
    assert sum(part.total for part in parts) == whole.total
    assert sum(part.count for part in parts) == whole.count


def test_shapes_that_differ_are_refused():
    with pytest.raises(LimbeckError, match=r"\[3\], the labels \[4\]"):
        precision(Labels(PREDICTED), HIDDEN[:3])
