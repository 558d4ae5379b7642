import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data.corrupted import CorruptedStream, corruptions
from limbeck.data.corruptions import CORRUPTIONS, corrupt
from limbeck.data.fingerprint import fingerprint
from limbeck.data.load import load
from limbeck.data.random import derive
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from tests.methods.streams import ORDER, stream


def _hash(of: CorruptedStream) -> str:
    digest = hashlib.sha256()
    of.update_hash(digest)
    return digest.hexdigest()


def test_every_image_once_a_domain_and_domains_in_order() -> None:
    data = stream(test_size=90)
    found = data.stream
    assert len(found) == 2 * 3 * 3
    assert sorted({len(found.batch(b)["label"]) for b in range(len(found))}) == [30]
    visits = [found.place(b) for b in range(len(found))]
    assert visits == [(r, d, p) for r in range(2) for d in range(3) for p in range(3)]
    orders = set()
    for visit in range(6):
        indices = torch.cat([found.batch(3 * visit + part)["index"] for part in range(3)])
        assert sorted(indices.tolist()) == sorted(found.samples.indices.tolist())
        orders.add(tuple(indices.tolist()))
    assert len(orders) == 6


def test_batches_hold_the_corrupted_images_of_their_indices() -> None:
    data = stream()
    for number in (0, 3, 11):
        batch = data.stream.batch(number)
        at = [data.test.indices.tolist().index(i) for i in batch["index"].tolist()]
        clean = data.test.fetch(torch.tensor(at))
        name = ORDER[data.stream.place(number).domain]
        expected = corrupt(name, clean["image"], 5, seed=derive(0, "corruptions"), indices=batch["index"])
        assert torch.equal(batch["image"], expected)
        assert torch.equal(batch["label"], clean["label"])


def test_a_function_of_the_seed_and_the_number() -> None:
    one, same = stream().stream, stream().stream
    for number in (5, 0, 11):
        assert all(
            torch.equal(a, b) for a, b in zip(one.batch(number).values(), same.batch(number).values(), strict=True)
        )
    assert _hash(one) == _hash(same)
    variants = [{"rounds": 3}, {"severity": 4}, {"order": ORDER[::-1]}, {"batch_size": 20}, {"test_size": 40}]
    hashes = {_hash(stream(**options).stream) for options in variants}
    assert len(hashes | {_hash(one)}) == 6


def test_the_source_model_sees_the_data_set_as_it_is() -> None:
    """And its training does not depend on the stream, so that arms with different streams share it."""
    data = stream()
    plain = load("digits", seed=0, view="none", validation=100)
    assert isinstance(plain, ImageData)
    assert torch.equal(data.train.indices, plain.train.indices)
    assert torch.equal(data.validation.indices, plain.validation.indices)
    assert data.task == plain.task
    assert fingerprint(data) == fingerprint(stream(rounds=3, order=["contrast"], severity=1))
    assert data.validation_stream is not None
    assert set(data.validation_stream.samples.indices.tolist()) == set(plain.validation.indices.tolist())


def test_clean_images_come_mixed() -> None:
    found = stream().stream
    batches = list(found.clean())
    assert sorted(torch.cat([b["index"] for b in batches]).tolist()) == sorted(found.samples.indices.tolist())
    assert all(len(b["label"].unique()) > 5 for b in batches)


def test_ready_made_images_in_the_layout_of_cifar_10_c(tmp_path: Path) -> None:
    clean = load("digits", seed=0)
    assert isinstance(clean, ImageData)
    count = len(clean.test.images)
    rows = np.arange(5 * count, dtype=np.int64)
    pixels = np.broadcast_to((rows % 251)[:, None, None, None], (5 * count, 8, 8, 1)).astype(np.uint8)
    np.save(tmp_path / "fog.npy", pixels)
    data = corruptions(seed=0, order=["fog"], severity=3, batch_size=100, folder=str(tmp_path))
    assert data.validation_stream is None
    batch = data.stream.batch(2)
    positions = [data.test.indices.tolist().index(i) for i in batch["index"].tolist()]
    wanted = (2 * count + data.test.rows[positions]) % 251
    torch.testing.assert_close(batch["image"][:, 0, 4, 4], wanted.float() / 255)
    with pytest.raises(LimbeckError, match=r"snow\.npy does not exist"):
        corruptions(seed=0, order=["snow"], folder=str(tmp_path))
    np.save(tmp_path / "snow.npy", pixels[1:])
    with pytest.raises(LimbeckError, match="expected uint8"):
        corruptions(seed=0, order=["snow"], folder=str(tmp_path))


def test_default_order_is_every_corruption() -> None:
    assert corruptions(seed=0).stream.order == tuple(CORRUPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": ["fogg"]}, "no corruption 'fogg'"),
        ({"order": []}, "order is empty"),
        ({"severity": 0}, "severity is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"dataset": {"size": 3}}, "names no source"),
        ({"dataset": "digitz"}, "no data source 'digitz'.*Did you mean 'digits'"),
        ({"dataset": {"name": "digits", "validaton": 3}}, "no option 'validaton'"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        corruptions(seed=0, **options)  # type: ignore[arg-type]
