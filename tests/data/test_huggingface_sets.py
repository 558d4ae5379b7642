"""Data sets of the Hugging Face hub and its formats."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.huggingface_sets import huggingface
from limbeck.data.load import load
from limbeck.errors import LimbeckError

from .shared_data import SHARED, needs_shared

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    datasets.disable_progress_bars()


def pixels(number):
    return np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def encoded(number):
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def table(count, labels=None, names=("cat", "dog"), column="image"):
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict(
        {column: [encoded(number) for number in range(count)], "label": labels or [n % 2 for n in range(count)]},
        features=features,
    )


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    table(10).to_parquet(root / "train.parquet")
    table(4).to_parquet(root / "test.parquet")
    return root


def test_a_folder_of_parquet_files(folder):
    source = huggingface(str(folder), flip=False)
    assert (len(source.train), len(source.test), source.validation, source.flip) == (10, 4, None, False)
    assert source.classes == ("cat", "dog")
    image = torch.from_numpy(pixels(7) / np.float32(255)).permute(2, 0, 1)
    assert torch.equal(source.train[7]["image"], image)
    assert huggingface(str(folder), size=4).train.shape == (3, 4, 4)


def test_files_and_splits_by_name(folder):
    table(3).to_parquet(folder / "val.parquet")
    files = {"fit": str(folder / "train.parquet"), "val": str(folder / "val.parquet")}
    source = huggingface("parquet", files, train_split="fit")
    assert [len(part) for part in (source.train, source.validation, source.test)] == [8, 3, 2]


def test_names_as_labels_in_csv(tmp_path):
    for number in range(6):
        Image.fromarray(pixels(number)).save(tmp_path / f"{number}.png")
    rows = [f"{tmp_path / f'{number}.png'},{'zebra' if number % 2 else 'ant'}" for number in range(6)]
    (tmp_path / "train.csv").write_text("\n".join(["file,kind", *rows]) + "\n")
    (tmp_path / "test.csv").write_text("\n".join(["file,kind", *rows[:2]]) + "\n")
    source = huggingface(str(tmp_path), image_column="file", label_column="kind")
    assert source.classes == ("ant", "zebra")
    assert source.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    (tmp_path / "test.csv").write_text("\n".join(["file,kind", rows[0].replace("ant", "bee")]) + "\n")
    with pytest.raises(LimbeckError, match="test: label 2 at index 0 is out of range"):
        huggingface(str(tmp_path), image_column="file", label_column="kind")


def test_saved_data_sets_and_image_folders(tmp_path):
    datasets.DatasetDict({"train": table(6), "test": table(2)}).save_to_disk(tmp_path / "saved")
    assert len(huggingface(str(tmp_path / "saved")).train) == 6
    for part, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(pixels(number)).save(tmp_path / "images" / part / name / f"{number}.png")
    source = huggingface(str(tmp_path / "images"))
    assert (len(source.train), len(source.test), source.classes) == (6, 2, ("cat", "dog"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "trian"}, "no split 'trian'.*Did you mean 'train'"),
        ({"test_split": "tst"}, "no split 'tst'.*Did you mean 'test'"),
        ({"image_column": "imge"}, "no column 'imge'.*Did you mean 'image'"),
        ({"label_column": "labels"}, "no column 'labels'.*Did you mean 'label'"),
    ],
)
def test_misspelt_splits_and_columns(folder, options, message):
    with pytest.raises(LimbeckError, match=message):
        huggingface(str(folder), **options)


def test_missing_data(tmp_path):
    with pytest.raises(LimbeckError, match="does not exist"):
        huggingface(str(tmp_path / "nowhere"))
    with pytest.raises(LimbeckError, match="path must be one of parquet"):
        huggingface("paquet", {"train": str(tmp_path)})
    (tmp_path / "train.parquet").write_bytes(b"text")
    with pytest.raises(LimbeckError, match="cannot be opened"):
        huggingface(str(tmp_path))


def test_missing_labels_name_the_index(tmp_path):
    table(6, labels=[0, 1, 0, 1, None, 1]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(LimbeckError, match="train, index 4: label None is no class"):
        huggingface(str(tmp_path))
    table(6, labels=[0, 1, 0, 1, -1, 1]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(LimbeckError, match=r"the (training|test) data has no label at index 4"):
        huggingface(str(tmp_path))


def test_damaged_images_name_the_index(tmp_path):
    rows = [encoded(number) for number in range(5)]
    rows[3]["bytes"] = rows[3]["bytes"][:100]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": rows, "label": [0] * 5}, features=features).to_parquet(
        tmp_path / "train.parquet"
    )
    with pytest.raises(LimbeckError, match="train, index 3: the image cannot be decoded"):
        huggingface(str(tmp_path))


@needs_shared
def test_sign_digits():
    data = load("huggingface", 0, path=str(SHARED / "sign-digits"), size=32)
    assert (len(data.train), len(data.validation), len(data.test)) == (1486, 165, 411)
    assert data.train.shape == (3, 32, 32)
    assert data.classes == tuple("0123456789")
