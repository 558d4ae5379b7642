import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.fingerprint import fingerprint
from limbeck.data.load import load
from limbeck.data.meta_encoding import encode_place, encode_time, mask_meta
from limbeck.data.meta_images import MetaSamples
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError


def time(month: float, hour: float) -> list[float]:
    return encode_time(torch.tensor([month]), torch.tensor([hour]))[0].tolist()


def place(latitude: float, longitude: float) -> list[float]:
    return encode_place(torch.tensor([latitude]), torch.tensor([longitude]))[0].tolist()


@pytest.mark.parametrize(
    ("month", "hour", "expected"),
    [(3, 6, [1, 0, 1, 0]), (12, 0, [0, 1, 0, 1]), (6, 12, [0, -1, 0, -1]), (9, 18, [-1, 0, -1, 0])],
)
def test_time_goes_around_a_circle(month: float, hour: float, expected: list[float]) -> None:
    assert time(month, hour) == pytest.approx(expected, abs=1e-9)  # computed in float64


def test_time_that_is_not_known() -> None:
    assert time(math.nan, math.nan) == [0, 0, 0, 0]
    assert time(3, math.nan) == pytest.approx([1, 0, 0, 0], abs=1e-9)


def test_place_lies_on_the_unit_sphere() -> None:
    assert place(90, 17) == pytest.approx([0, 0, 1], abs=1e-7)
    assert place(0, 0) == [1, 0, 0]  # a place like any other
    assert place(0, 90) == pytest.approx([0, 1, 0], abs=1e-7)
    assert place(math.nan, 5) == place(5, math.nan) == [0, 0, 0]
    draws = np.random.default_rng(0).uniform([-90, -180], [90, 180], (50, 2))
    found = encode_place(torch.from_numpy(draws[:, 0]), torch.from_numpy(draws[:, 1]))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(50))
    phi, lam = np.radians(draws.T)
    expected = np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], -1)
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.1, 0), (0.3, 2), (0.5, 4), (1.0, 8), (0.125, 1)])
def test_masking(share: float, count: int) -> None:
    meta = torch.rand(8, 5) + 0.1
    before = meta.clone()
    masked = mask_meta(meta, share, torch.Generator().manual_seed(0))
    empty = (masked == 0).all(1)
    assert int(empty.sum()) == count
    assert torch.equal(masked[~empty], meta[~empty])
    assert torch.equal(meta, before)


def test_which_are_masked_is_drawn() -> None:
    meta, generator = torch.ones(40, 1), torch.Generator().manual_seed(0)
    assert not torch.equal(mask_meta(meta, 0.5, generator), mask_meta(meta, 0.5, generator))


def made_up(**options: Any) -> ImageData:
    data = load("meta_images", seed=0, **{"dataset": "digits", "view": "none", **options})
    assert isinstance(data, ImageData)
    return data


def test_meta_belongs_to_its_sample() -> None:
    """Whatever is cut off or hidden, the same image has the same meta-information."""
    data = made_up(labels_per_class=5, label_noise=0.2)
    whole = made_up()
    assert isinstance(whole.train, MetaSamples)
    rows = dict(
        zip(whole.train.indices.tolist(), whole.train.fetch(torch.arange(len(whole.train)))["meta"], strict=True)
    )
    for part in (data.train, data.unlabeled):
        assert isinstance(part, MetaSamples)
        batch = part.fetch(torch.arange(len(part)))
        assert batch["meta"].shape == (len(part), 7)
        same = [
            torch.equal(rows[int(i)], row)
            for i, row in zip(batch["index"], batch["meta"], strict=True)
            if int(i) in rows
        ]
        assert same
        assert all(same)
    assert isinstance(data.train.relabel(torch.zeros_like(data.train.labels)), MetaSamples)


def test_meta_tells_something_but_not_all() -> None:
    samples = made_up(noise=0.5, spread=5.0, missing=0.0).train
    assert isinstance(samples, MetaSamples)
    meta, labels = samples.meta[samples.rows], samples.labels
    month = torch.atan2(meta[:, 0], meta[:, 1]) * 6 / math.pi % 12
    longitude = torch.atan2(meta[:, 5], meta[:, 4]).rad2deg() % 360
    for number in range(10):
        around = (month[labels == number] - 4 * (number % 3) + 6) % 12 - 6
        assert abs(float(around.mean())) < 0.2  # 130 samples of spread 0.5
        assert float(around.std()) == pytest.approx(0.5, rel=0.3)
        away = (longitude[labels == number] - 180 * (number // 3 % 2) + 180) % 360 - 180
        assert abs(float(away.mean())) < 2
    # Classes 0 and 6 have both in common.
    assert torch.equal(meta[:, :2].norm(dim=1).round(decimals=5), torch.ones(len(meta)))


def test_what_is_missing_is_zero() -> None:
    samples = made_up(missing=0.25).train
    assert isinstance(samples, MetaSamples)
    meta = samples.meta[samples.rows]
    no_time, no_place = (meta[:, :4] == 0).all(1), (meta[:, 4:] == 0).all(1)
    for share in (no_time, no_place):
        assert 0.18 < float(share.float().mean()) < 0.32  # of 1,300
    assert (no_time & ~no_place).any()
    all_known = made_up(missing=0.0).train.fetch(torch.arange(100))["meta"]
    assert all_known.all()


def test_seed_of_the_run_changes_splits_only() -> None:
    one, two = (load("meta_images", seed=seed, dataset="digits") for seed in (0, 1))
    assert torch.equal(one.train.meta, two.train.meta)  # type: ignore[attr-defined]


def test_fingerprint_knows_the_meta_information() -> None:
    assert fingerprint(made_up()) == fingerprint(made_up())
    assert fingerprint(made_up()) != fingerprint(made_up(noise=0.9))


def test_refuses() -> None:
    with pytest.raises(LimbeckError, match="seasons 0"):
        made_up(seasons=0)
    with pytest.raises(LimbeckError, match="makes its own splits"):
        made_up(dataset="points")
    with pytest.raises(LimbeckError, match="splits are options of meta_images"):
        made_up(dataset={"name": "digits", "labels_per_class": 3})
    train = made_up().train
    with pytest.raises(LimbeckError, match="give one row of finite numbers"):
        MetaSamples(torch.full((len(train.images), 2), math.nan), **train.arguments)


COLOURS = {"a.jpg": 10, "b.jpg": 120, "c.jpg": 240}


def folder(path: Path, year: int) -> Path:
    """Three training images and one for testing, as the competitions lay them out."""
    for name, grey in COLOURS.items():
        for part in ("train", "val"):
            (path / part).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 10), (grey, 0, 0)).save(path / part / name)
    names = {7: "Aves alpha", 3: "Insecta beta"}
    codes = {7: "1", 3: "0"} if year == 2018 else names
    where = {
        11: {"date": "2017-03-05 06:30:00+00:00", "lat": 90.0, "lon": 10.0},
        12: {"date": "2017-12-05", "lat": 0.0, "lon": 90.0},
        13: {"date": None, "lat": None, "lon": None},
    }
    for part in ("train", "val"):
        images: list[dict[str, Any]] = []
        for number, name in zip((11, 12, 13), COLOURS, strict=True):
            row: dict[str, Any] = {"id": number, "file_name": f"{part}/{name}"}
            if year == 2021:
                own = where[number]
                row |= {"date": own["date"], "latitude": own["lat"], "longitude": own["lon"]}
            images.append(row)
        # Not in the order of the images.
        labels = [{"image_id": n, "category_id": c} for n, c in ((13, 3), (11, 7), (12, 3))]
        listing = {"images": images, "annotations": labels, "categories": [{"id": n, "name": codes[n]} for n in (7, 3)]}
        suffix = "" if year == 2021 else str(year)
        (path / f"{part}{suffix}.json").write_text(json.dumps(listing))
        if year != 2021:
            rows = [{"id": number, **own} for number, own in where.items() if number != 13]
            (path / f"{part}{suffix}_locations.json").write_text(json.dumps(rows))
    if year == 2018:
        (path / "categories.json").write_text(
            json.dumps([{"id": 0, "name": "Insecta beta"}, {"id": 1, "name": "Aves alpha"}])
        )
    return path


@pytest.mark.parametrize("year", [2017, 2018, 2021])
def test_inaturalist(year: int, tmp_path: Path) -> None:
    data = load("inaturalist", seed=0, root=str(folder(tmp_path, year)), year=year, size=8, validation=1, view="none")
    assert data.classes == ("Insecta beta", "Aves alpha")
    test = data.test
    assert isinstance(test, MetaSamples)
    batch = test.fetch(torch.arange(3))
    assert batch["label"].tolist() == [1, 0, 0]
    assert (batch["image"][:, 0].mean((1, 2)) * 255).tolist() == pytest.approx([10, 120, 240], abs=2)  # JPEG
    meta = batch["meta"].tolist()
    assert meta[0] == pytest.approx([1, 0, 1, 0, 0, 0, 1], abs=1e-7)
    assert meta[1] == pytest.approx([0, 1, 0, 0, 0, 1, 0], abs=1e-7)
    assert meta[2] == [0] * 7
    assert len(data.train) == 2
    assert isinstance(data.train, MetaSamples)


def test_mini_training_set(tmp_path: Path) -> None:
    folder(tmp_path, 2021)
    (tmp_path / "train.json").rename(tmp_path / "train_mini.json")
    assert len(load("inaturalist", seed=0, root=str(tmp_path), size=8, validation=1).train) == 2


def test_inaturalist_refuses(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="year is 2019"):
        load("inaturalist", seed=0, root=str(tmp_path), year=2019)
    with pytest.raises(LimbeckError, match=r"train\.json"):
        load("inaturalist", seed=0, root=str(tmp_path))
    folder(tmp_path, 2021)
    listing = json.loads((tmp_path / "train.json").read_text())
    listing["annotations"].pop()
    (tmp_path / "train.json").write_text(json.dumps(listing))
    with pytest.raises(LimbeckError, match=r"1 images have no known species, first train/b\.jpg"):
        load("inaturalist", seed=0, root=str(tmp_path), size=8)
    (tmp_path / "val.json").write_text("[]")
    with pytest.raises(LimbeckError, match=r"val\.json does not say what its categories are called"):
        load("inaturalist", seed=0, root=str(tmp_path), size=8)
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(LimbeckError, match="is not JSON"):
        load("inaturalist", seed=0, root=str(tmp_path), size=8)
