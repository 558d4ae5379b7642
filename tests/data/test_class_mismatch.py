import math

import pytest
import torch

from limbeck.data.class_mismatch import class_mismatch
from limbeck.data.fingerprint import fingerprint
from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError

FEW = {"name": "digits", "labels_per_class": 5, "view": "none"}


def share(data: ImageData) -> float:
    assert data.unlabeled is not None
    assert data.unlabeled.hidden_labels is not None
    return float((data.unlabeled.hidden_labels < 0).double().mean())


@pytest.mark.parametrize(("mismatch", "expected"), [(0.8, 400), (0.2, 25), (0.6, 150), (0.5, 100), (0.0, 0)])
def test_how_many_unknown_images(mismatch: float, expected: int) -> None:
    # Two classes with a label each: 102 images leave 100 without labels; eight more classes have about 1,060.
    block = {"name": "digits", "labels_per_class": 1, "train_size": 102, "view": "none"}
    data = class_mismatch(0, block, ["3", "5"], mismatch)
    assert data.unlabeled is not None
    assert len(data.unlabeled) == 100 + expected
    assert share(data) == pytest.approx(mismatch, abs=1e-9)


@pytest.mark.parametrize("mismatch", [0.33, 0.61])
def test_numbers_that_do_not_divide_are_rounded_up(mismatch: float) -> None:
    data = class_mismatch(0, FEW, ["0", "1", "2", "3"], mismatch)
    known = len(class_mismatch(0, FEW, ["0", "1", "2", "3"], 0.0).unlabeled or [])
    assert data.unlabeled is not None
    assert len(data.unlabeled) - known == math.ceil(mismatch * known / (1 - mismatch))
    assert mismatch <= share(data) < mismatch + 1 / known


def test_which_images_are_where() -> None:
    data = class_mismatch(0, FEW, ["7", "2", "9"], 0.5, unknown=["0", "1", "3"])
    assert data.classes == ("7", "2", "9")
    assert data.task.classes == data.classes
    assert data.unlabeled is not None
    assert data.unlabeled.hidden_labels is not None
    assert bool((data.unlabeled.labels == -1).all())
    # Positions are those of the data set: the digits themselves say what each image is.
    whole = load("digits", 0).train
    images = whole.images.take(torch.arange(1797))  # type: ignore[attr-defined]
    from sklearn.datasets import load_digits

    truth = torch.from_numpy(load_digits().target)
    for samples, hidden in ((data.train, data.train.labels), (data.unlabeled, data.unlabeled.hidden_labels)):
        batch = samples.fetch(torch.arange(len(samples)))
        assert torch.equal(batch["image"], images[batch["index"]])
        names = torch.tensor([7, 2, 9, -1])[hidden]
        digits = truth[batch["index"]]
        of_task = hidden >= 0
        assert torch.equal(names[of_task], digits[of_task])
        assert set(digits[~of_task].tolist()) <= {0, 1, 3}
    assert sorted(data.train.labels.tolist()) == [0] * 5 + [1] * 5 + [2] * 5
    every = torch.cat([data.train.indices, data.unlabeled.indices, data.validation.indices, data.test.indices])
    assert len(every.unique()) == len(every)
    for part in (data.validation, data.test):
        assert set(truth[part.indices].tolist()) == {7, 2, 9}


def test_a_pure_function_of_the_seed() -> None:
    hashes = [fingerprint(class_mismatch(seed, FEW, mismatch=0.3)) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    more = class_mismatch(0, FEW, mismatch=0.4)
    assert more.classes == ("0", "1", "2", "3", "4")  # half of them, where none are named
    # What the task's own images are does not hang on the mismatch.
    assert torch.equal(more.train.indices, class_mismatch(0, FEW, mismatch=0.3).train.indices)


def test_by_name() -> None:
    data = load("class_mismatch", 3, dataset=FEW, classes=["0", "1"], mismatch=0.5)
    assert isinstance(data, ImageData)
    assert share(data) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mismatch": 1.0}, "mismatch is 1.0"),
        ({"mismatch": 0.9}, "needs .* of unknown classes, and there are .* by dataset.train_size"),
        ({"classes": ["0", "x"]}, "class 'x' is none of"),
        ({"classes": ["0", "1"], "unknown": ["1", "2"]}, r"\['1'\] cannot be known and unknown"),
        ({"dataset": "digits"}, "no unlabelled images to hide others among"),
        ({"dataset": {"name": "open_set"}}, "makes its own splits"),
        ({"dataset": {**FEW, "label_per_class": 3}}, "label_per_class"),
    ],
)
def test_errors(arguments: dict, message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        class_mismatch(0, **{"dataset": FEW, **arguments})
