import dataclasses

import pytest
import torch

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.data.semi_supervised import labeled_and_unlabeled
from limbeck.errors import LimbeckError

VIEWS = {"weak": "weak", "strong": "strong"}


def test_streams() -> None:
    data = load("digits", seed=0, labels_per_class=4)
    streams = labeled_and_unlabeled(data, 8, 0, ratio=3, views=VIEWS)
    labeled, unlabeled = streams["labeled"].batch(0), streams["unlabeled"].batch(0)
    assert labeled["image"].shape == (8, 1, 8, 8)
    assert unlabeled["weak"].shape == unlabeled["strong"].shape == (24, 1, 8, 8)
    assert not torch.equal(unlabeled["weak"], unlabeled["strong"])
    assert (labeled["label"] >= 0).all()
    assert (unlabeled["label"] == -1).all()
    assert "image" not in unlabeled

    # All samples are in the second stream, once an epoch, with the truth beside them.
    everything = streams["unlabeled"].samples
    assert data.unlabeled is not None
    indices = torch.cat([data.train.indices, data.unlabeled.indices])
    assert everything.indices.sort().values.tolist() == indices.sort().values.tolist()
    truth = dict(zip(everything.indices.tolist(), everything.hidden_labels.tolist(), strict=True))  # type: ignore[attr-defined]
    assert all(truth[int(i)] == int(y) for i, y in zip(data.train.indices, data.train.labels, strict=True))


def test_the_labelled_part_is_read_in_the_view_of_the_data() -> None:
    data = load("digits", seed=0, labels_per_class=4, view="none")
    batch = labeled_and_unlabeled(data, 8, 0, ratio=1, views=VIEWS)["labeled"].batch(0)
    place = {int(i): k for k, i in enumerate(data.train.indices)}
    plain = data.train.fetch(torch.tensor([place[int(i)] for i in batch["index"]]))
    assert torch.equal(batch["image"], plain["image"])


def test_without_unlabelled_samples(digits: ImageData) -> None:
    assert digits.unlabeled is None
    with pytest.raises(LimbeckError, match=r"needs unlabelled samples.*data\.labels_per_class=10"):
        labeled_and_unlabeled(dataclasses.replace(digits), 8, 0, ratio=1, views=VIEWS)
