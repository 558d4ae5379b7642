import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.labels.joint import aggregate, joint_labels, per_view


def test_numbering_of_the_released_code() -> None:
    assert joint_labels(torch.tensor([3]), 4).tolist() == [[12, 13, 14, 15]]


@given(st.integers(1, 6), st.integers(1, 6))
def test_labels_and_their_parts(classes: int, views: int) -> None:
    joint = joint_labels(torch.arange(classes), views)
    assert joint.flatten().tolist() == list(range(classes * views))
    y, j = joint // views, joint % views
    assert torch.equal(y, torch.arange(classes)[:, None].expand(-1, views))
    assert torch.equal(j, torch.arange(views).expand(classes, -1))


def test_worked_aggregation() -> None:
    """Columns (0, 0), (0, 1), (1, 0), (1, 1): what a view says of the other view's labels, here 9, does not count."""
    views = torch.tensor([[2.0, 9.0, 0.0, 9.0], [9.0, 1.0, 9.0, 3.0]])
    assert per_view(views).tolist() == [[2.0, 0.0], [1.0, 3.0]]
    assert aggregate(views).tolist() == [1.5, 1.5]
    assert torch.equal(aggregate(views.where(views != 9, -1e4)), aggregate(views))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31 - 1))
def test_against_loops_with_any_leading_dimensions(classes: int, views: int, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(2, 3, views, classes * views)) * 1e4
    found = aggregate(torch.tensor(logits)).numpy()
    for at in np.ndindex(2, 3):
        for i in range(classes):
            wanted = sum(logits[(*at, j, i * views + j)] for j in range(views)) / views
            # Sums of at most four float64 numbers of 1e4.
            assert found[(*at, i)] == pytest.approx(wanted, abs=1e-10)


def test_gradient_reaches_own_labels_only() -> None:
    logits = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(aggregate, (logits,))
    aggregate(logits).sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[0], torch.eye(3, dtype=torch.float64).repeat(1, 2) / 3)


def test_half_precision_is_averaged_in_full() -> None:
    logits = torch.tensor([[256.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16)
    assert aggregate(logits).tolist() == [128.5]  # which bfloat16 does not have


def test_one_view_is_the_logits_themselves() -> None:
    logits = torch.randn(5, 1, 7)
    assert torch.equal(aggregate(logits), logits[:, 0])


def test_wrong_number_of_logits() -> None:
    with pytest.raises(LimbeckError, match="7 joint logits cannot be those of 2 views"):
        aggregate(torch.zeros(2, 7))
