"""The verb predict."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from limbeck import models
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier
from limbeck.verbs.predict import predict


@pytest.fixture
def photos(tmp_path: Path, digits: ImageData) -> Path:
    """Seven digits as grey 8-bit PNG files, one of them in a folder of its own."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    images = digits.test.fetch(torch.arange(7))["image"]
    for number, image in enumerate((images[:, 0] * 255).round().byte().numpy()):
        name = f"more/{number}.png" if number == 6 else f"{number}.PNG"
        Image.fromarray(image).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def colour_model(size: int | None) -> Classifier:
    """Answers by the colour that an image has most of."""
    head = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(4 * torch.eye(3))
    body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return Classifier(body, ["red", "green", "blue, or so"], channels=3, size=size)


def save_colour(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (6, 6)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def test_samples(digits: ImageData, nearest_mean: Classifier) -> None:
    rows = predict(nearest_mean, digits.test, batch_size=100)
    images = digits.test.fetch(torch.arange(len(digits.test)))["image"]
    expected = nearest_mean(images).logits.detach().double().softmax(1)
    assert [row.source for row in rows] == digits.test.indices.tolist()
    assert list(rows[0].probabilities) == list(digits.classes)
    found = torch.tensor([list(row.probabilities.values()) for row in rows], dtype=torch.float64)
    # Logits of up to 100 in float32 are exact to about 1e-5.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    for row, probabilities in zip(rows, expected, strict=True):
        assert row.label == digits.classes[int(probabilities.argmax())]
        assert row.probability == max(row.probabilities.values()) == row.probabilities[row.label]
    assert torch.equal(found.sum(1).float(), torch.ones(len(rows)))


def test_a_subset_is_read_by_position_and_named_by_index(digits: ImageData, nearest_mean: Classifier) -> None:
    some = digits.test.subset([5, 2, 400])
    rows, all_rows = predict(nearest_mean, some), predict(nearest_mean, digits.test)
    assert [row.source for row in rows] == digits.test.indices[[5, 2, 400]].tolist()
    assert [row.label for row in rows] == [all_rows[position].label for position in (5, 2, 400)]


def test_tensors_of_floats_and_bytes_agree(digits: ImageData, nearest_mean: Classifier) -> None:
    pixels = (digits.test.fetch(torch.arange(20))["image"] * 255).round().byte()
    of_bytes, of_floats = predict(nearest_mean, pixels), predict(nearest_mean, pixels.float() / 255)
    assert of_bytes == of_floats
    assert [row.source for row in of_bytes] == list(range(20))


def test_a_folder_is_searched_and_files_say_the_same(photos: Path, nearest_mean: Classifier) -> None:
    rows = predict(nearest_mean, photos, batch_size=3)
    files = sorted([*photos.glob("*.PNG"), photos / "more" / "6.png"])
    assert [row.source for row in rows] == [str(file) for file in files]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in files])
    expected = predict(nearest_mean, pixels)
    assert [row.label for row in rows] == [row.label for row in expected]
    assert rows[3].probability == pytest.approx(expected[3].probability, abs=2e-5)
    assert predict(nearest_mean, list(map(str, files)), batch_size=3) == rows
    assert predict(nearest_mean, files[2])[0].source == str(files[2])
    mixed = predict(nearest_mean, [files[1], photos / "more"])
    assert [row.source for row in mixed] == [str(files[1]), str(photos / "more" / "6.png")]


def test_grey_and_colour_files_of_any_size_for_one_model(tmp_path: Path) -> None:
    files = [
        save_colour(tmp_path / "a.png", (250, 3, 3), (40, 20)),
        save_colour(tmp_path / "b.jpg", (3, 250, 3), (9, 31)),
    ]
    Image.new("L", (12, 12), 128).save(tmp_path / "c.png")
    rows = predict(colour_model(size=8), tmp_path)
    assert [row.label for row in rows[:2]] == ["red", "green"]
    # Grey has as much of each colour.
    assert rows[2].probability == pytest.approx(1 / 3, abs=1e-6)
    assert [row.source for row in rows[:2]] == [str(file) for file in files]


def test_size_is_that_of_the_training_data(tmp_path: Path) -> None:
    # Red in the centre square, blue outside: only with size= is the outside cut off for a model of any size.
    image = Image.new("RGB", (30, 10), (0, 0, 255))
    image.paste((255, 0, 0), (10, 0, 20, 10))
    image.save(tmp_path / "image.png")
    assert predict(colour_model(size=None), tmp_path)[0].label == "blue, or so"
    assert predict(colour_model(size=None), tmp_path, size=10)[0].label == "red"


def test_temperature_divides_the_logits(digits: ImageData, nearest_mean: Classifier) -> None:
    images = digits.test.fetch(torch.arange(5))["image"]
    rows = predict(nearest_mean, images, temperature=2.5)
    expected = (nearest_mean(images).logits.detach().double() / 2.5).softmax(1).max(1).values
    assert [row.probability for row in rows] == pytest.approx(expected.tolist(), abs=1e-6)
    assert rows[0].label == predict(nearest_mean, images)[0].label


def test_csv(tmp_path: Path) -> None:
    save_colour(tmp_path / "with, comma.png", (0, 0, 255))
    rows = predict(colour_model(size=8), tmp_path, out=tmp_path / "out" / "labels.csv")
    with (tmp_path / "out" / "labels.csv").open(newline="", encoding="utf-8") as handle:
        (read,) = csv.DictReader(handle)
    assert read["file"] == str(tmp_path / "with, comma.png")
    assert read["class"] == "blue, or so"
    assert float(read["probability"]) == rows[0].probability
    assert float(read["probability/blue, or so"]) == rows[0].probability
    assert float(read["probability/red"]) == rows[0].probabilities["red"]


def test_json_lines(tmp_path: Path, digits: ImageData, nearest_mean: Classifier) -> None:
    rows = predict(nearest_mean, digits.test, out=tmp_path / "labels.jsonl")
    read = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert [line["index"] for line in read] == digits.test.indices.tolist()
    assert [line["class"] for line in read] == [row.label for row in rows]
    assert read[7]["probabilities"] == rows[7].probabilities


def test_a_saved_model(tmp_path: Path, digits: ImageData) -> None:
    torch.manual_seed(0)
    model = models.build("mlp", digits.task, hidden=16)
    models.save(model, tmp_path / "model")
    assert predict(tmp_path / "model", digits.test) == predict(model, digits.test)


def test_the_model_is_as_before(digits: ImageData, nearest_mean: Classifier) -> None:
    nearest_mean.train()
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    predict(nearest_mean, digits.test)
    assert nearest_mean.training
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_broken_image_is_named(damage: str, photos: Path, nearest_mean: Classifier) -> None:
    broken = photos / "4.PNG"
    content = {"truncated": broken.read_bytes()[:-30], "text": b"no image", "empty": b""}
    broken.write_bytes(content[damage])
    with pytest.raises(LimbeckError, match=r"4\.PNG"):
        predict(nearest_mean, photos, batch_size=2, out=photos / "labels.csv")
    assert not (photos / "labels.csv").exists()


def test_sizes_that_differ_are_named_for_a_model_of_any_size(tmp_path: Path) -> None:
    save_colour(tmp_path / "a.png", (1, 2, 3), (6, 6))
    save_colour(tmp_path / "b.png", (1, 2, 3), (6, 7))
    with pytest.raises(LimbeckError, match=r"b\.png is \[3, 7, 6\].*a\.png is \[3, 6, 6\]"):
        predict(colour_model(size=None), tmp_path)


def test_wrong_words_are_named(tmp_path: Path, digits: ImageData, nearest_mean: Classifier) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LimbeckError, match=r"no images in .*empty"):
        predict(nearest_mean, tmp_path / "empty")
    with pytest.raises(LimbeckError, match=r"missing\.png"):
        predict(nearest_mean, tmp_path / "missing.png")
    with pytest.raises(LimbeckError, match="no images"):
        predict(nearest_mean, [])
    with pytest.raises(LimbeckError, match=r"labels\.txt ends in neither \.csv nor \.jsonl"):
        predict(nearest_mean, digits.test, out="labels.txt")
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(LimbeckError, match="temperature"):
            predict(nearest_mean, digits.test, temperature=temperature)
    with pytest.raises(LimbeckError, match="batch_size is 0"):
        predict(nearest_mean, digits.test, batch_size=0)
    with pytest.raises(LimbeckError, match=r"values from 0 to 255"):
        predict(nearest_mean, torch.tensor([0.0, 255.0]).repeat(32).view(1, 1, 8, 8))


def test_broken_weights_are_named(digits: ImageData, nearest_mean: Classifier) -> None:
    with torch.no_grad():
        nearest_mean.body[1].bias[3] = float("inf")
    with pytest.raises(LimbeckError, match=f"NaN or infinite logits for {int(digits.test.indices[0])}:"):
        predict(nearest_mean, digits.test)
