import pytest
import torch

from limbeck.data.fingerprint import fingerprint
from limbeck.data.load import load
from limbeck.data.open_set import Resized, open_set
from limbeck.data.pixels import Memory
from limbeck.data.thumbnails import thumbnails
from limbeck.errors import LimbeckError

LABELED = {"name": "digits", "labels_per_class": 5, "view": "none"}


def test_classes_are_matched_by_name() -> None:
    data = open_set(0, LABELED, "digits", size=100)
    own = load("digits", 0, labels_per_class=5, view="none")
    assert data.unlabeled is not None
    assert own.unlabeled is not None
    assert len(data.unlabeled) == len(own.unlabeled) + 100
    assert bool((data.unlabeled.labels == -1).all())
    there = load("digits", 0).train
    images = data.unlabeled.fetch(torch.arange(len(own.unlabeled), len(data.unlabeled)))
    everything = there.fetch(torch.arange(len(there)))["image"].flatten(1)  # type: ignore[attr-defined]
    where = torch.cdist(images["image"].flatten(1), everything).argmin(1)
    assert torch.equal(images["hidden_label"], there.labels[where])  # type: ignore[attr-defined]
    assert len(set(data.unlabeled.indices.tolist())) == len(data.unlabeled)
    assert torch.equal(data.train.labels, own.train.labels)  # type: ignore[attr-defined]


def test_a_pure_function_of_the_seed() -> None:
    hashes = [fingerprint(open_set(seed, LABELED, "digits", size=50)) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_without_unlabelled_images_of_its_own_the_pool_is_all() -> None:
    data = open_set(0, "digits", "digits", size=30)
    assert data.unlabeled is not None
    assert len(data.unlabeled) == 30


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 8), (3, 12, 16), (1, 8, 8)])
def test_resized(shape: tuple[int, int, int]) -> None:
    images = Memory(torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    found = Resized(images, shape).take(torch.tensor([4, 1]))
    assert found.shape == (2, *shape)
    assert found.min() >= 0
    assert found.max() <= 1
    # Bilinear resizing keeps the mean up to what happens at the borders.
    torch.testing.assert_close(
        found.mean((1, 2, 3)), images.take(torch.tensor([4, 1])).mean((1, 2, 3)), atol=0.03, rtol=0
    )
    if shape == (3, 8, 8):
        assert torch.equal(found, images.take(torch.tensor([4, 1])))
        found.zero_()
        assert images.take(torch.tensor([4])).sum() > 0


def test_errors() -> None:
    with pytest.raises(LimbeckError, match="size is 5000; the pool has"):
        open_set(0, LABELED, "digits", size=5000)
    with pytest.raises(LimbeckError, match="open_set: pool: dataset names no source"):
        open_set(0, LABELED, {"dataset": "FashionMNIST"})


def test_thumbnails() -> None:
    samples = load("digits", 0).train.subset(range(7))  # type: ignore[attr-defined]
    fields = thumbnails(samples, side=4)
    image = samples.fetch(torch.tensor([5]))["image"][0, 0].double()
    blocks = torch.stack([image[r : r + 2, c : c + 2].mean() for r in range(0, 8, 2) for c in range(0, 8, 2)])
    torch.testing.assert_close(fields[5].double(), blocks - blocks.mean(), atol=1e-6, rtol=0)  # float32
    assert thumbnails(samples).shape == (7, 64)  # as many fields as pixels
