import dataclasses
import json
from pathlib import Path

import pytest
import torch

from limbeck.data.samples import ImageData
from limbeck.data.store import SCHEMA, LabelStore, Rows, Schema, samples_hash
from limbeck.data.stored_views import StoredViews
from limbeck.errors import LimbeckError


def schema(data: ImageData, **changes: object) -> Schema:
    samples = data.train.subset(range(6))
    made = Schema(
        classes=data.classes,
        samples=6,
        epochs=2,
        view="weak",
        flip=False,
        seed=3,
        stream="labels",
        batch_size=4,
        mix="none",
        storage="float16",
        teacher="t",
        data=samples_hash(samples),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def rows_of(rows: torch.Tensor, scale: float = 1.0) -> Rows:
    logits = scale * torch.randn(len(rows), 10, generator=torch.Generator().manual_seed(0))
    return Rows(logits, rows.clone(), torch.full((len(rows),), 0.25), torch.arange(4).repeat(len(rows), 1))


def finish(store: LabelStore, folder: Path) -> None:
    store.flush()
    (folder / SCHEMA).write_text(json.dumps(store.description()))


@pytest.mark.parametrize(("storage", "bits"), [("float16", 11), ("float32", 24)])
def test_what_is_written_is_read(digits: ImageData, tmp_path: Path, storage: str, bits: int) -> None:
    store = LabelStore.create(tmp_path, schema(digits, storage=storage))
    rows = torch.tensor([7, 0, 3])
    written = rows_of(rows)
    store.write(rows, written)
    finish(store, tmp_path)
    found = LabelStore.open(tmp_path)
    assert found.schema == store.schema
    labels = found.read(torch.tensor([3, 7, 0]))
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(labels.logits, written.logits[order], rtol=2.0**-bits, atol=2.0**-24)
    assert labels.logits.dtype == torch.float32
    for name in ("partner", "share", "box"):
        assert torch.equal(getattr(labels, name), getattr(written, name)[order])
    assert found.read(torch.tensor([1])).partner.item() == -1
    with pytest.raises(ValueError, match="read-only"):
        found.write(rows, written)


def test_unfinished_store_is_refused_and_can_go_on(digits: ImageData, tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path, schema(digits))
    store.write(torch.tensor([2]), rows_of(torch.tensor([2])))
    store.flush()
    with pytest.raises(LimbeckError, match="labelling was interrupted"):
        LabelStore.open(tmp_path)
    again = LabelStore.create(tmp_path, schema(digits), resume=True)
    assert again.read(torch.tensor([2, 3])).partner.tolist() == [2, -1]
    fresh = LabelStore.create(tmp_path, schema(digits))
    assert fresh.read(torch.tensor([2])).partner.tolist() == [-1]


def test_numbers_that_the_storage_cannot_hold(digits: ImageData, tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path, schema(digits))
    rows = torch.tensor([4])
    with pytest.raises(LimbeckError, match="row 4 is not finite in float16"):
        store.write(rows, rows_of(rows, scale=1e6))
    wide = LabelStore.create(tmp_path / "wide", schema(digits, storage="float32"))
    wide.write(rows, rows_of(rows, scale=1e6))
    with pytest.raises(LimbeckError, match="not finite in float32"):
        wide.write(rows, rows_of(rows, scale=float("nan")))


def test_other_versions_and_arrays_are_refused(digits: ImageData, tmp_path: Path) -> None:
    finish(LabelStore.create(tmp_path, schema(digits)), tmp_path)
    content = json.loads((tmp_path / SCHEMA).read_text())
    for change, message in (
        ({"format_version": 99}, "format_version 99"),
        ({"epochs": 3}, "schema.json says"),
        ({"storage": "float32"}, "schema.json says"),
    ):
        (tmp_path / SCHEMA).write_text(json.dumps({**content, **change}))
        with pytest.raises(LimbeckError, match=message):
            LabelStore.open(tmp_path)
    (tmp_path / SCHEMA).write_text(json.dumps({k: v for k, v in content.items() if k != "view"}))
    with pytest.raises(LimbeckError, match="not the description of a store"):
        LabelStore.open(tmp_path)
    (tmp_path / SCHEMA).write_text(json.dumps(content))
    (tmp_path / "box.npy").write_bytes(b"no array")
    with pytest.raises(LimbeckError, match=r"box\.npy cannot be read"):
        LabelStore.open(tmp_path)


def test_labels_of_other_data_are_refused(digits: ImageData) -> None:
    samples = digits.train.subset(range(6))
    StoredViews(samples, LabelStore.blank(schema(digits)))
    for other in (digits.train.subset(range(1, 7)), digits.train.subset(range(5)), samples.relabel(samples.labels * 0)):
        with pytest.raises(LimbeckError, match="fingerprints differ"):
            StoredViews(other, LabelStore.blank(schema(digits)))
    with pytest.raises(LimbeckError, match="stored labels are of the classes"):
        StoredViews(samples, LabelStore.blank(schema(digits, classes=tuple("abcdefghij"))))


def test_other_views_and_later_epochs_are_refused(digits: ImageData) -> None:
    samples = StoredViews(digits.train.subset(range(6)), LabelStore.blank(schema(digits)))
    batch = samples.stream(4).batch(0)
    assert torch.equal(batch["logits"], torch.zeros(4, 10))
    plain = samples.fetch(torch.arange(2))
    epochs = torch.tensor([1, 2])
    with pytest.raises(LimbeckError, match="has no stored label in epoch 2"):
        samples.augment(plain, {"image": "weak"}, seed=3, epochs=epochs, flip=False)
    for views, seed, flip in (
        ({"image": "none"}, 3, False),
        ({"image": "weak"}, 4, False),
        ({"image": "weak"}, 3, True),
    ):
        with pytest.raises(LimbeckError, match=r"read them by StoredViews\.stream"):
            samples.augment(plain, views, seed=seed, epochs=epochs, flip=flip)
    with pytest.raises(LimbeckError, match="labels are stored for the view 'weak'"):
        samples.check_view("crop")
