import hashlib
from pathlib import Path

import pytest
import torch

from limbeck.data.boxes import BoxData, BoxSamples, PaddedBoxes, bccd, digit_boxes
from limbeck.data.load import load
from limbeck.data.pixels import Memory
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from tests.data.shared_data import needs_shared


@pytest.fixture(scope="module")
def digits() -> BoxData:
    return digit_boxes(seed=0, size=48, labeled=0.25, train=40, validation=8, test=8)


def _hash(samples: BoxSamples) -> str:
    digest = hashlib.sha256()
    samples.update_hash(digest)
    return digest.hexdigest()


def test_boxes_are_tight_around_the_ink(digits: BoxData) -> None:
    batch = digits.train.fetch(torch.arange(10))
    for image, boxes, labels in zip(batch["image"], batch["boxes"], batch["box_label"], strict=True):
        assert image.shape == (1, 48, 48)
        for x1, y1, x2, y2 in boxes[labels >= 0].int().tolist():
            inside = image[0, y1:y2, x1:x2] > 0.2
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.any()
    assert digits.unlabeled is not None
    assert digits.unlabeled.hidden_box_label is not None
    assert (digits.unlabeled.hidden_box_label < 0).all(1).any()  # images without a box are among them


def test_labeled_share(digits: BoxData) -> None:
    assert digits.unlabeled is not None
    assert (len(digits.train), len(digits.unlabeled)) == (10, 30)
    assert set(digits.train.indices.tolist()) | set(digits.unlabeled.indices.tolist()) == set(range(40))
    other = digit_boxes(seed=1, size=48, labeled=0.25, train=40, validation=8, test=8)
    assert digits.train.indices.tolist() != other.train.indices.tolist()
    assert torch.equal(digits.test.fetch(torch.arange(8))["image"], other.test.fetch(torch.arange(8))["image"])
    assert digit_boxes(seed=0, size=48, labeled=1.0, train=4, validation=1, test=1).unlabeled is None


def test_unlabelled_boxes_are_hidden(digits: BoxData) -> None:
    assert digits.unlabeled is not None
    batch = digits.unlabeled.fetch(torch.arange(30))
    assert (batch["box_label"] == -1).all()
    assert not batch["boxes"].any()
    assert (batch["hidden_box_label"] >= 0).any()
    assert batch["hidden_boxes"].shape == batch["boxes"].shape
    assert "hidden_boxes" not in digits.train.fetch(torch.arange(1))


def test_stream_moves_the_boxes_with_the_image(digits: BoxData) -> None:
    batch = Stream(digits.train, 10, seed=0, views={"image": "strong"}, flip=True).batch(0)
    order = torch.argsort(batch["index"])
    plain = digits.train.fetch(torch.arange(10))
    used = (plain["box_label"] >= 0) & (batch["box_label"][order] >= 0)
    assert used.any()
    assert not torch.equal(batch["boxes"][order][used], plain["boxes"][used])
    assert batch["image_matrix"].shape == (10, 3, 3)
    sides = batch["boxes"][..., 2:] - batch["boxes"][..., :2]
    assert (sides[batch["box_label"] >= 0] > 0).all()


def test_stream_of_two_views_leaves_the_boxes_in_the_data(digits: BoxData) -> None:
    assert digits.unlabeled is not None
    stream = Stream(digits.unlabeled, 6, seed=0, views={"weak": "weak", "strong": "strong"}, name="unlabeled")
    batch = stream.batch(0)
    assert set(batch) == {
        *("weak", "weak_matrix", "strong", "strong_matrix", "boxes", "box_label", "hidden_boxes"),
        *("hidden_box_label", "index", "epoch"),
    }
    positions = torch.searchsorted(digits.unlabeled.indices, batch["index"])
    assert torch.equal(batch["hidden_boxes"], digits.unlabeled.fetch(positions)["hidden_boxes"])
    assert all(len(value) == 6 for value in batch.values())


def test_hash(digits: BoxData) -> None:
    assert digits.unlabeled is not None
    same = digit_boxes(seed=0, size=48, labeled=0.25, train=40, validation=8, test=8)
    assert _hash(digits.train) == _hash(same.train)
    moved = digit_boxes(seed=0, size=48, labeled=0.25, train=40, validation=8, test=8)
    moved.train.boxes[:, 0, 0] += 1e-3
    smaller = digit_boxes(seed=0, size=48, labeled=0.25, train=40, validation=8, test=8, min_scale=0.5)
    assert len({_hash(part) for part in (digits.train, digits.unlabeled, moved.train, smaller.train)}) == 4


def test_task(digits: BoxData) -> None:
    task = digits.task
    assert (task.classes[3], task.channels, task.size) == ("3", 1, (48, 48))
    assert digits.unlabeled is not None
    pixels = torch.cat([part.fetch(torch.arange(len(part)))["image"] for part in (digits.train, digits.unlabeled)])
    assert task.mean[0] == pytest.approx(float(pixels.double().mean()), abs=1e-6)
    assert task.std[0] == pytest.approx(float(pixels.double().std(correction=0)), abs=1e-6)


def test_wrong_options() -> None:
    for options, message in (
        ({"labeled": 0.0}, r"labeled is 0\.0"),
        ({"labeled": 1.5}, r"labeled is 1\.5"),
        ({"size": 16}, "size is 16"),
        ({"most": 0}, "most is 0"),
        ({"train": 0}, "train is 0"),
        ({"min_scale": 0.0}, r"min_scale is 0\.0"),
    ):
        with pytest.raises(LimbeckError, match=message):
            digit_boxes(**{"seed": 0, "train": 4, "validation": 1, "test": 1, "size": 48, **options})  # type: ignore[arg-type]
    with pytest.raises(LimbeckError, match=r"no option 'labelled'.*Did you mean 'labeled'"):
        load("digit_boxes", seed=0, labelled=0.5)


def test_wrong_boxes() -> None:
    images = Memory(torch.zeros(2, 1, 8, 8))
    good = torch.tensor([1.0, 1.0, 4.0, 4.0])
    for box, label, message in (
        ([1.0, 1.0, 1.0, 4.0], 0, "index 1 has a box without area"),
        ([1.0, 1.0, float("nan"), 4.0], 0, "index 1 has a box without area"),
        ([1.0, 1.0, 9.0, 4.0], 0, "index 1 has a box outside of its 8x8 pixels"),
        ([1.0, 1.0, 4.0, 4.0], 2, "index 1 has a label outside of 0 to 1"),
    ):
        truth = PaddedBoxes.of([good[None], torch.tensor([box])], [torch.tensor([0]), torch.tensor([label])])
        with pytest.raises(LimbeckError, match=message):
            BoxSamples(images, truth, ("a", "b"))
    with pytest.raises(LimbeckError, match="2 images but the boxes of 1"):
        BoxSamples(images, PaddedBoxes.of([good[None]], [torch.tensor([0])]), ("a",))
    none = BoxSamples(images, PaddedBoxes.of([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2), ("a",))
    assert none.fetch(torch.tensor([1]))["boxes"].shape == (1, 0, 4)


@needs_shared
def test_bccd() -> None:
    data = bccd(seed=0, size=48)
    assert data.left_out == 2
    assert data.unlabeled is not None
    assert data.unlabeled.hidden_box_label is not None
    assert [len(part) for part in (data.train, data.unlabeled, data.validation, data.test)] == [20, 185, 87, 72]
    counts = sum(labels[labels >= 0].bincount() for labels in (data.train.box_label, data.unlabeled.hidden_box_label))
    assert torch.equal(torch.as_tensor(counts), torch.tensor([2381, 214, 209]))  # one of 2,382 has no area
    assert data.task.size == (48, 64)
    assert data.task.channels == 3


def test_bccd_without_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    with pytest.raises(LimbeckError, match=r"BCCD .* were not found: set LIMBECK_DATA"):
        bccd(seed=0)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    with pytest.raises(LimbeckError, match=r"holds no 'train\.txt'"):
        bccd(seed=0, root=str(tmp_path))
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("one\n")
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages" / "one.jpg").write_bytes(b"no picture")
    with pytest.raises(LimbeckError, match=r"one\.jpg: not a readable image"):
        bccd(seed=0, root=str(tmp_path))
