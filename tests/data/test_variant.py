from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data.digits import digits
from limbeck.data.load import load
from limbeck.data.variant import variant
from limbeck.errors import LimbeckError


def pixels(samples: object) -> torch.Tensor:
    return samples.fetch(torch.arange(len(samples)))["image"]  # type: ignore[attr-defined,arg-type]


def test_classes_in_the_order_asked_for() -> None:
    whole, part = digits(), variant("digits", classes=["7", "2"])
    assert part.classes == ("7", "2")
    for name in ("train", "test"):
        before, after = getattr(whole, name), getattr(part, name)
        kept = (before.labels == 7) | (before.labels == 2)
        assert torch.equal(after.indices, before.indices[kept])
        assert torch.equal(after.labels, (before.labels[kept] == 2).long())
        assert torch.equal(pixels(after), pixels(before)[kept])
        assert after.num_samples == before.num_samples
    assert part.flip == whole.flip


@pytest.mark.parametrize("turns", [0, 1, 2, 4, -1])
def test_turned_images(turns: int) -> None:
    wanted = np.rot90(pixels(digits().train).numpy(), turns, axes=(2, 3))
    found = variant({"name": "digits"}, turns=turns).train
    np.testing.assert_array_equal(pixels(found).numpy(), wanted)
    assert found.shape == (1, 8, 8)
    assert found.in_memory


def test_images_that_are_not_square_change_their_shape(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.random.default_rng(0).random((10, 4, 6)), y_train=np.arange(10) % 2)
    found = variant({"name": "npz", "path": str(tmp_path / "a.npz")}, turns=1)
    assert found.train.shape == (1, 6, 4)
    assert pixels(found.train).shape == (8, 1, 6, 4)


def test_splits_are_those_of_any_source() -> None:
    data = load("variant", seed=0, classes=["0", "1"], turns=2, labels_per_class=5, validation=30, view="none")
    assert len(data.train) == 10
    assert len(data.validation) == 30
    assert data.unlabeled is not None
    assert set(data.unlabeled.hidden_labels.tolist()) == {0, 1}
    assert data.task.classes == ("0", "1")


def test_wrong_input() -> None:
    with pytest.raises(LimbeckError, match="no data source 'digit'"):
        variant("digit")
    with pytest.raises(LimbeckError, match="'clients' makes its own splits"):
        variant("clients")
    with pytest.raises(LimbeckError, match=r"dataset 'digits': .*train_size.*; splits are options of variant"):
        variant({"name": "digits", "train_size": 100})
    with pytest.raises(LimbeckError, match="class '10' is none of 0, 1"):
        variant("digits", classes=["10"])
    with pytest.raises(LimbeckError, match="class '1' is named twice"):
        variant("digits", classes=["1", "1"])
