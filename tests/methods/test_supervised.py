from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.classification.supervised import Supervised
from tests.methods.tables import Floats, Table, assert_equal, batch, fit, log_softmax, onehot, small, softmax, student
from tests.methods.tables import total as loss_of

LOGITS = arrays(np.float64, (5, 3), elements=st.floats(-20, 20))
LABELS = st.lists(st.integers(0, 2), min_size=5, max_size=5)


@given(LOGITS, LABELS, st.floats(0, 1), st.lists(st.booleans(), min_size=5, max_size=5))
def test_equation_and_gradient(z: Floats, labels: list[int], epsilon: float, known: list[bool]) -> None:
    """q = (1 - epsilon) onehot(y) + epsilon / C; the mean is over the samples that have a label."""
    table = Table(z)
    given_labels = [label if seen else -1 for label, seen in zip(labels, known, strict=True)]
    loss = loss_of(Supervised(table, label_smoothing=epsilon).terms(batch(given_labels)))
    loss.backward()

    q = (1 - epsilon) * onehot(labels, 3) + epsilon / 3
    weight = np.array(known, dtype=np.float64) / max(1, sum(known))
    # float64 on both sides; the values reach 40.
    np.testing.assert_allclose(loss.item(), -(weight * (q * log_softmax(z)).sum(-1)).sum(), atol=1e-13)
    np.testing.assert_allclose(table.gradient(), weight[:, None] * (softmax(z) - q), atol=1e-14)


def test_worked_example() -> None:
    table = Table(np.log([[0.25, 0.6, 0.15]]))
    assert loss_of(Supervised(table).terms(batch([1]))).item() == pytest.approx(-np.log(0.6), abs=1e-14)
    smoothed = -(0.9 * np.log(0.6) + 0.1 / 3 * np.log([0.25, 0.6, 0.15]).sum())
    found = loss_of(Supervised(table, label_smoothing=0.1).terms(batch([1]))).item()
    assert found == pytest.approx(smoothed, abs=1e-14)


def test_without_any_label_nothing_is_learned() -> None:
    table = Table([[1.0, 2.0, 3.0]])
    loss = loss_of(Supervised(table, label_smoothing=0.1).terms(batch([-1])))
    loss.backward()
    assert loss.item() == 0
    assert not table.gradient().any()


def test_extreme_logits() -> None:
    table = Table([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]])
    loss = loss_of(Supervised(table, label_smoothing=0.1).terms(batch([0, 1])))
    loss.backward()
    # 0.1 / 3 (2e4 + 1e4) = 1000, and 0.9 2e4 more where the label is wrong.
    assert loss.item() == pytest.approx((1000 + 19000) / 2)
    assert np.isfinite(table.gradient()).all()


def test_no_smoothing_is_plain_cross_entropy_of_torch(digits: ImageData, tmp_path: Path) -> None:
    """A whole fit equals one that never heard of limbeck's losses, up to the rounding of the means."""

    class Plain(Supervised):
        def terms(self, batch):  # type: ignore[no-untyped-def]
            return {"ce": torch.nn.functional.cross_entropy(self.student(batch).logits, batch["label"])}

    data = small(digits)
    ours = fit(Supervised(student(data)), data, tmp_path / "ours", updates=4)
    theirs = fit(Plain(student(data)), data, tmp_path / "theirs", updates=4)
    for name, tensor in ours.items():
        # Four updates from sums of 50 float32 values in another order: a few units in the last place of 1.
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)


def test_smoothing_changes_the_fit(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    plain = fit(Supervised(student(data)), data, tmp_path / "plain", updates=2)
    smoothed = fit(Supervised(student(data), label_smoothing=0.1), data, tmp_path / "smoothed", updates=2)
    with pytest.raises(AssertionError):
        assert_equal(plain, smoothed)


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
def test_smoothing_out_of_range(epsilon: float) -> None:
    with pytest.raises(LimbeckError, match=f"label_smoothing is {epsilon}; it must lie between 0 and 1"):
        Supervised(Table([[0.0, 1.0]]), label_smoothing=epsilon)
