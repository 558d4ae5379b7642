"""The verb export: one file that onnxruntime runs as PyTorch runs the model."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from limbeck import models
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier
from limbeck.verbs.export import export


def run(path: Path, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])


def convolutional(size: int | None = 12, channels: int = 3) -> Classifier:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    return Classifier(body, ["a", "b", "ö"], channels=channels, size=size, mean=mean, std=std)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Path]:
    """A model and its file; tracing takes seconds, so tests that only read share it."""
    model = convolutional()
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export(model, path)
    return model.eval(), path


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_the_file_computes_what_the_model_computes(exported: tuple[Classifier, Path], batch: int) -> None:
    model, path = exported
    images = torch.rand(batch, 3, 12, 12)
    with torch.no_grad():
        expected = model(images).logits
    # Sums of 27 float32 terms in another order.
    torch.testing.assert_close(run(path, images), expected, rtol=1e-5, atol=1e-5)


def test_it_is_one_valid_file_with_its_metadata(exported: tuple[Classifier, Path]) -> None:
    _, path = exported
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    (logits,) = session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["batch", 3, 12, 12])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["batch", 3])
    found = session.get_modelmeta().custom_metadata_map
    assert json.loads(found["classes"]) == ["a", "b", "ö"]
    assert json.loads(found["preprocessing"]) == {"channels": 3, "size": [12, 12], "range": [0, 1]}
    assert json.loads(found["normalization_in_graph"]) == {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def test_the_callers_model_is_untouched(tmp_path: Path, digits: ImageData, nearest_mean: Classifier) -> None:
    nearest_mean.bfloat16().train()
    before = {name: value.clone() for name, value in nearest_mean.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    result = export(nearest_mean, tmp_path / "model.onnx")
    assert torch.equal(torch.rand(2), expected)
    assert nearest_mean.training
    assert all(torch.equal(before[name], value) for name, value in nearest_mean.state_dict().items())
    assert all(value.dtype == torch.bfloat16 for value in nearest_mean.state_dict().values())
    # The file itself is in float32, and labels real images as the model does.
    images = digits.test.fetch(torch.arange(100))["image"]
    with torch.no_grad():
        expected = nearest_mean.float().eval()(images).logits
    # Logits of up to 100: their last float32 digits.
    torch.testing.assert_close(run(result.path, images), expected, rtol=1e-5, atol=1e-4)


def test_a_saved_model_and_a_library_network(tmp_path: Path, digits: ImageData) -> None:
    torch.manual_seed(0)
    model = models.build("cnn", digits.task)
    models.save(model, tmp_path / "saved")
    result = export(tmp_path / "saved", tmp_path / "deep" / "model.onnx")
    assert result.path == tmp_path / "deep" / "model.onnx"
    assert result.difference is not None
    images = digits.test.fetch(torch.arange(9))["image"]
    with torch.no_grad():
        expected = model.eval()(images).logits
    torch.testing.assert_close(run(result.path, images), expected, rtol=1e-4, atol=1e-5)


def test_a_model_of_any_size_needs_one(tmp_path: Path) -> None:
    model = convolutional(size=None, channels=1)
    with pytest.raises(LimbeckError, match=r"give size=\(height, width\)"):
        export(model, tmp_path / "model.onnx")
    export(model, tmp_path / "model.onnx", size=(9, 14))
    images = torch.rand(2, 1, 9, 14)
    with torch.no_grad():
        expected = model.eval()(images).logits
    torch.testing.assert_close(run(tmp_path / "model.onnx", images), expected, rtol=1e-5, atol=1e-5)


class Counts(nn.Module):
    """Adds the number of its calls, in Python: the file keeps the first answer, PyTorch goes on to others."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 2)
        self.calls = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.head(image.flatten(1)) + self.calls


def test_a_file_that_differs_is_not_written(tmp_path: Path) -> None:
    model = Classifier(Counts(), ["a", "b"], channels=1, size=8)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(LimbeckError, match=r"differ from PyTorch's by .* nothing was written"):
        export(model, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert export(model, path, check=False).difference is None
    assert path.read_bytes() != b"old"


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(image.flatten(1)) * (2 if float(image.sum()) > 3 else 1)


def test_a_model_that_cannot_be_exported_says_so(tmp_path: Path) -> None:
    model = Classifier(Branches(), ["a", "b"], channels=1, size=8)
    with pytest.raises(LimbeckError, match="cannot be exported to ONNX") as caught:
        export(model, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_difference_is_the_largest_one_that_was_seen(tmp_path: Path, nearest_mean: Classifier) -> None:
    result = export(nearest_mean, tmp_path / "model.onnx")
    images = torch.rand(5, 1, 8, 8).round()
    with torch.no_grad():
        here = float((run(result.path, images) - nearest_mean.eval()(images).logits).abs().max())
    assert result.difference is not None
    # Float32 logits of up to 100 in sums of 64 terms: at most a few units of 2^-18.
    assert max(here, result.difference) < 1e-4
    assert np.isfinite(result.difference)


def test_wrong_words_are_named(tmp_path: Path, nearest_mean: Classifier) -> None:
    with pytest.raises(LimbeckError, match=r"unknown format 'onxx'\. Did you mean 'onnx'\?"):
        export(nearest_mean, tmp_path / "model.onnx", format="onxx")  # type: ignore[arg-type]
    with pytest.raises(LimbeckError, match=r"model\.pt does not end in \.onnx"):
        export(nearest_mean, tmp_path / "model.pt")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(LimbeckError, match=r"folder\.onnx is a folder"):
        export(nearest_mean, tmp_path / "folder.onnx")
