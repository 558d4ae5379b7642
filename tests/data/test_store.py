import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from limbeck.data.samples import ImageData, Samples
from limbeck.data.store import MANIFEST, LabelStore, Rows, Schema
from limbeck.data.stored_views import StoredViews
from limbeck.errors import LimbeckError
from limbeck.stages.store_writer import StoreWriter


def six(data: ImageData) -> Samples:
    return data.train.subset([3, 0, 11, 7, 5, 2])


def schema(data: ImageData, **changes: object) -> Schema:
    made = Schema(
        classes=data.classes,
        samples=6,
        views=2,
        view="weak",
        flip=False,
        seed=3,
        kept="dense",
        k=0,
        storage="float16",
        mix="none",
        ordered=True,
        stream="",
        batch_size=4,
        teacher="t",
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


KEYED = {"mix": "cutmix", "ordered": False, "stream": "labels"}


def rows_of(rows: torch.Tensor, scale: float = 1.0) -> Rows:
    logits = scale * torch.randn(len(rows), 10, generator=torch.Generator().manual_seed(int(rows[0])))
    return Rows(logits, rows.flip(0), torch.full((len(rows),), 0.25), torch.arange(4).repeat(len(rows), 1))


def write(
    folder: Path, data: ImageData, made: Schema, parts: list[list[int]], planned: int | None = None
) -> list[Rows]:
    """Each list of rows as a file of its own."""
    writer = StoreWriter(folder, made, six(data), sum(map(len, parts)) if planned is None else planned)
    written = []
    for part in parts:
        rows = torch.tensor(part)
        written.append(rows_of(rows))
        writer.add(made.encode(rows, written[-1]))
        writer.flush()
    return written


@pytest.mark.parametrize(("storage", "bits"), [("float16", 11), ("float32", 24)])
def test_what_is_written_is_read(digits: ImageData, tmp_path: Path, storage: str, bits: int) -> None:
    """Rows in the order of a stream, in two files, read in a third order."""
    parts = write(tmp_path, digits, schema(digits, storage=storage, **KEYED), [[7, 0, 3], [4, 11]])
    found = LabelStore.open(tmp_path)
    assert found.has(torch.arange(-1, 13)).nonzero()[:, 0].sub(1).tolist() == [0, 3, 4, 7, 11]
    labels = found.read(torch.tensor([3, 11, 7, 4, 0]))
    for name in Rows._fields:
        written = torch.cat([getattr(part, name) for part in parts])[[2, 4, 0, 3, 1]]
        torch.testing.assert_close(getattr(labels, name), written, rtol=2.0**-bits, atol=2.0**-24)
        assert getattr(labels, name).dtype == written.dtype


def test_rows_in_order_need_no_table_and_are_never_mixed(digits: ImageData, tmp_path: Path) -> None:
    (first, second) = write(tmp_path, digits, schema(digits), [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11]])
    found = LabelStore.open(tmp_path)
    labels = found.read(torch.tensor([8, 2]))
    torch.testing.assert_close(labels.logits, torch.stack([second.logits[1], first.logits[2]]), rtol=1e-3, atol=1e-7)
    assert labels.partner.tolist() == [8, 2]
    assert labels.share.tolist() == [1, 1]
    assert not labels.box.any()
    indices = six(digits).indices
    rows = found.rows(indices[[2, 5]], torch.tensor([1, 0]))
    assert rows.tolist() == [8, 5]
    assert torch.equal(found.index_of(rows), indices[[2, 5]])
    assert found.has(torch.tensor([11, 12])).tolist() == [True, False]
    assert sum(len(pa.ipc.open_stream(pa.memory_map(str(f))).read_all().schema) for f in tmp_path.glob("rows-*")) == 2


def test_others_can_read_the_files(digits: ImageData, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (written,) = write(tmp_path, digits, schema(digits, kept="top_k", k=3, storage="float32"), [list(range(12))])
    table = datasets.Dataset.from_file(str(tmp_path / "rows-00000.arrow"))
    expected = written.logits.softmax(1).topk(3)
    assert np.array_equal(np.array(table["classes"][:]), expected.indices.numpy())
    np.testing.assert_allclose(np.array(table["probabilities"][:]), expected.values.numpy(), rtol=1e-6)
    about = json.loads(pa.ipc.open_stream(str(tmp_path / "rows-00000.arrow")).schema.metadata[b"limbeck"])
    assert about["view"] == "weak"
    assert about["classes"] == list(digits.classes)


def test_unfinished_store_is_refused_and_goes_on(digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=r"holds no store\.json"):
        LabelStore.open(tmp_path)
    write(tmp_path, digits, schema(digits), [[0, 1, 2]], planned=12)
    with pytest.raises(LimbeckError, match="holds 3 of 12 labels: its labelling was interrupted"):
        LabelStore.open(tmp_path)
    (tmp_path / "rows-00001.arrow").write_bytes(b"killed before it was entered")
    again = StoreWriter(tmp_path, schema(digits), six(digits), 12)
    assert again.done == 3
    rows = torch.arange(3, 12)
    again.add(again.schema.encode(rows, rows_of(rows)))
    again.flush()
    assert LabelStore.open(tmp_path).read(rows).logits.shape == (9, 10)


def test_views_can_be_added_and_nothing_else(digits: ImageData, tmp_path: Path) -> None:
    write(tmp_path, digits, schema(digits), [list(range(12))])
    before = LabelStore.open(tmp_path)
    more = StoreWriter(tmp_path, schema(digits, views=3), six(digits), 18)
    rows = torch.arange(12, 18)
    more.add(more.schema.encode(rows, rows_of(rows)))
    more.flush()
    found = LabelStore.open(tmp_path)
    assert found.schema.views == 3
    assert found.version != before.version
    assert torch.equal(found.read(torch.arange(12)).logits, before.read(torch.arange(12)).logits)
    for changes in ({"teacher": "u"}, {"views": 1}, {"seed": 4}, {"storage": "float32"}):
        with pytest.raises(LimbeckError, match=f"holds other labels .*{next(iter(changes))}"):
            StoreWriter(tmp_path, schema(digits, **{"views": 3, **changes}), six(digits), 18)
    with pytest.raises(LimbeckError, match="no label of 1 of the 6 samples, the first of them with index"):
        StoreWriter(tmp_path, schema(digits, views=3), digits.train.subset([3, 0, 11, 7, 5, 1]), 18)
    with pytest.raises(LimbeckError, match="in another order"):
        StoreWriter(tmp_path, schema(digits, views=3), digits.train.subset([0, 3, 11, 7, 5, 2]), 18)


def test_numbers_that_the_storage_cannot_hold(digits: ImageData) -> None:
    rows = torch.tensor([0])
    with pytest.raises(LimbeckError, match="not finite in float16"):
        schema(digits).encode(rows, rows_of(rows, scale=1e6))


def test_changed_files_and_other_versions_are_refused(digits: ImageData, tmp_path: Path) -> None:
    write(tmp_path, digits, schema(digits), [[*range(12)]])
    content = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(LimbeckError, match="format_version 99"):
        LabelStore.open(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({key: value for key, value in content.items() if key != "schema"}))
    with pytest.raises(LimbeckError, match="not the description of a store"):
        LabelStore.open(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    for name in ("rows-00000.arrow", "samples.arrow"):
        good = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(good[:-100] + bytes([good[-100] ^ 1]) + good[-99:])
        with pytest.raises(LimbeckError, match=f"{name} is missing or was changed"):
            LabelStore.open(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(LimbeckError, match=f"{name} is missing or was changed"):
            LabelStore.open(tmp_path)
        (tmp_path / name).write_bytes(good)
    LabelStore.open(tmp_path)


def test_labels_of_other_data_are_refused(digits: ImageData) -> None:
    samples = six(digits)
    store = LabelStore.blank(schema(digits), samples)
    for fine in (samples, samples.subset([4, 1]), samples.relabel(samples.labels * 0), samples.unlabel()):
        store.check(fine)
    with pytest.raises(LimbeckError, match="no label of 6 of the 6 samples"):
        store.check(digits.train.subset(range(20, 26)))
    with pytest.raises(LimbeckError, match="holds no label of 1 of the 2 samples, the first of them with index"):
        store.check(digits.train.subset([3, 1]))
    images = samples.fetch(torch.arange(6))["image"]
    images[4, 0, 3, 3] = 1 - images[4, 0, 3, 3]
    changed = Samples(images, samples.labels, samples.classes, indices=samples.indices, num_samples=samples.num_samples)
    with pytest.raises(LimbeckError, match=f"the image with index {int(samples.indices[4])} is not the one"):
        store.check(changed)
    with pytest.raises(LimbeckError, match="holds labels of the classes"):
        LabelStore.blank(schema(digits, classes=tuple("abcdefghij")), samples).check(samples)


def test_other_views_and_later_epochs_are_refused(digits: ImageData) -> None:
    samples = StoredViews(six(digits), LabelStore.blank(schema(digits), six(digits)))
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
