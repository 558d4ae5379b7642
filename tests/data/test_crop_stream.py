"""Several stored views of each image in a batch."""

import dataclasses
from pathlib import Path

import pytest
import torch

from limbeck.data import views
from limbeck.data.crop_stream import CropStream
from limbeck.data.samples import ImageData, Samples
from limbeck.data.store import LabelStore, Schema
from limbeck.errors import LimbeckError
from limbeck.stages.store_writer import StoreWriter
from limbeck.teachers.stored import Stored
from tests.data.test_store import rows_of, schema

VIEWS = 7


def few(data: ImageData) -> Samples:
    return data.train.subset([3, 0, 11, 7, 5, 2])


@pytest.fixture
def store(digits: ImageData, tmp_path: Path) -> LabelStore:
    made: Schema = dataclasses.replace(schema(digits), views=VIEWS, view="crop@0.2-1", flip=True, storage="float32")
    writer = StoreWriter(tmp_path, made, few(digits), 6 * VIEWS)
    rows = torch.arange(6 * VIEWS)
    writer.add(made.encode(rows, rows_of(rows)))
    writer.flush()
    return LabelStore.open(tmp_path)


def stream(digits: ImageData, store: LabelStore, **changes: object) -> CropStream:
    options = {"batch_size": 12, "seed": 5, "crops": 3, **changes}
    return CropStream(few(digits), store, **options)  # type: ignore[arg-type]


def test_neighbours_are_different_views_of_one_image_with_their_labels(digits: ImageData, store: LabelStore) -> None:
    images = {
        int(index): image
        for index, image in zip(few(digits).indices, few(digits).fetch(torch.arange(6))["image"], strict=True)
    }
    for number in range(5):
        batch = stream(digits, store).batch(number)
        assert batch["image"].shape == (12, 1, 8, 8)
        groups, numbers = batch["index"].view(4, 3), batch["epoch"].view(4, 3)
        assert (groups == groups[:, :1]).all()
        assert all(len(set(row)) == 3 for row in numbers.tolist())
        logits = Stored(store)(batch).logits
        for at in range(12):
            index, view = int(batch["index"][at]), int(batch["epoch"][at])
            where = {"epochs": torch.tensor([view]), "indices": torch.tensor([index])}
            made = views.apply("crop@0.2-1", images[index][None], seed=3, flip=True, **where)
            assert torch.equal(batch["image"][at], made[0])
            place = few(digits).indices.tolist().index(index)
            assert torch.equal(logits[at], store.read(torch.tensor([view * 6 + place])).logits[0])


def test_a_pass_over_the_images_takes_as_many_epochs_as_crops(digits: ImageData, store: LabelStore) -> None:
    made = stream(digits, store, batch_size=6)
    seen = torch.cat([made.batch(number)["index"][::3] for number in range(3)])
    assert sorted(seen.tolist()) == sorted(few(digits).indices.tolist())
    later = torch.cat([made.batch(number)["epoch"] for number in range(3, 6)])
    assert not torch.equal(later, torch.cat([made.batch(number)["epoch"] for number in range(3)]))
    assert torch.equal(made.batch(4)["image"], stream(digits, store, batch_size=6).batch(4)["image"])


def test_all_views_are_drawn_about_equally_often(digits: ImageData, store: LabelStore) -> None:
    made = stream(digits, store, batch_size=18)
    counts = torch.bincount(torch.cat([made.batch(number)["epoch"] for number in range(200)]), minlength=VIEWS)
    # 3,600 draws, 3 of 7 without replacement: standard deviation below 23 of a mean of 514.
    assert (counts - 3600 / VIEWS).abs().max() < 5 * 23


def test_only_chosen_views_come_and_some_twice_where_they_are_few(digits: ImageData, store: LabelStore) -> None:
    chosen = torch.zeros(6, VIEWS, dtype=torch.bool)
    chosen[:, [1, 4, 5, 6]] = True
    chosen[2] = False
    chosen[2, 3] = True
    made = stream(digits, store, chosen=chosen)
    lonely = int(few(digits).indices[2])
    for number in range(8):
        batch = made.batch(number)
        alone = batch["index"] == lonely
        assert (batch["epoch"][alone] == 3).all()
        rest = batch["epoch"][~alone]
        assert set(rest.tolist()) <= {1, 4, 5, 6}
        assert all(len(set(row)) == 3 for row in rest.view(-1, 3).tolist())


def test_processes_share_the_images(digits: ImageData, store: LabelStore) -> None:
    whole = stream(digits, store).batch(1)
    halves = [stream(digits, store).batch(1, rank=rank, world=2) for rank in range(2)]
    index = torch.cat([half["index"].view(-1, 3) for half in halves])
    assert sorted(index[:, 0].tolist()) == sorted(whole["index"][::3].tolist())
    with pytest.raises(LimbeckError, match="the 4 images of a batch cannot be divided among 3 processes"):
        stream(digits, store).batches(0, 1, world=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crops": 5}, "a batch of 12 cannot hold 5 views"),
        ({"crops": 0}, "cannot hold 0 views"),
        ({"crops": 12}, "crops is 12, and 7 views of each image have labels"),
        (
            {"chosen": torch.eye(6, VIEWS).bool() & (torch.arange(6) != 4)[:, None]},
            "the image at position 4 has no view",
        ),
    ],
)
def test_refusals(digits: ImageData, store: LabelStore, changes: dict[str, object], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        stream(digits, store, **changes)
