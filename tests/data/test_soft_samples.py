"""Images with a probability for every class."""

import hashlib

import pytest
import torch

from limbeck.data.fingerprint import samples_hash
from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.data.soft_samples import SoftSamples
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError


@pytest.fixture(scope="module")
def few() -> ImageData:
    return load("digits", seed=0, labels_per_class=2, view="none")


def soft(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 10, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def test_labels_are_one_hot_targets(few: ImageData) -> None:
    samples = SoftSamples.labelled(few.train)
    batch = samples.fetch(torch.tensor([3, 0]))
    assert torch.equal(batch["target"], torch.eye(10)[few.train.labels[[3, 0]]])
    assert torch.equal(batch["image"], few.train.fetch(torch.tensor([3, 0]))["image"])


def test_joined_samples_keep_their_targets_through_a_stream(few: ImageData) -> None:
    assert few.unlabeled is not None
    bought = few.unlabeled.subset([5, 9, 2])
    targets = soft(3)
    samples = SoftSamples.labelled(few.train).joined(bought, targets)
    assert len(samples) == 23
    assert samples.labels[20:].tolist() == [-1] * 3
    assert samples.hidden_labels is not None
    assert torch.equal(samples.hidden_labels[20:], few.unlabeled.hidden_labels[[5, 9, 2]])  # type: ignore[index]
    expected = dict(zip(samples.indices.tolist(), samples.targets, strict=True))
    batch = Stream(samples, 23, seed=1, views={"image": "weak"}).batch(0)
    assert sorted(batch["index"].tolist()) == sorted(expected)
    assert all(torch.equal(t, expected[i]) for i, t in zip(batch["index"].tolist(), batch["target"], strict=True))
    assert torch.equal(samples.subset([22, 20]).targets, targets[[2, 0]])
    assert torch.equal(samples.subset([22]).joined(bought, targets).targets, torch.cat([targets[2:], targets]))


def test_other_targets_are_other_data(few: ImageData) -> None:
    assert samples_hash(SoftSamples(few.train, soft(20))) == samples_hash(SoftSamples(few.train, soft(20)))
    assert samples_hash(SoftSamples(few.train, soft(20))) != samples_hash(SoftSamples(few.train, soft(20, seed=1)))
    plain = hashlib.sha256()
    few.train.update_hash(plain)
    assert samples_hash(SoftSamples(few.train, soft(20))) != plain.hexdigest()


def test_targets_that_cannot_be(few: ImageData) -> None:
    with pytest.raises(LimbeckError, match=r"targets have shape \[20, 9\], expected \[20, 10\]"):
        SoftSamples(few.train, torch.ones(20, 9) / 9)
    for broken in (2 * soft(20), soft(20) - 0.2, soft(20) * torch.nan):
        with pytest.raises(LimbeckError, match=f"the target of index {int(few.train.indices[0])} is no probability"):
            SoftSamples(few.train, broken)
    assert few.unlabeled is not None
    with pytest.raises(LimbeckError, match=f"no label at index {int(few.unlabeled.indices[0])}"):
        SoftSamples.labelled(few.unlabeled)
