"""SimCLR's head, and classifiers that keep its first layers."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.models import Classifier, build, load, save
from limbeck.models.heads import ContrastiveHead
from limbeck.models.projector import Projector, project, project_contrastively
from limbeck.models.tapped import tap


def projector(digits: ImageData, batch_norm: bool = True) -> Projector:
    torch.manual_seed(0)
    made = project_contrastively(build("cnn", digits.task, width=4), digits.task, outputs=16, batch_norm=batch_norm)
    made.train()
    for _ in range(3):  # statistics of something seen
        made(torch.rand(20, 1, 8, 8))
    return made.eval()


def images(digits: ImageData) -> torch.Tensor:
    return digits.test.fetch(torch.arange(6))["image"]


def test_head_of_the_paper() -> None:
    head = ContrastiveHead(32, 128)
    linear = [part for part in head.modules() if isinstance(part, nn.Linear)]
    assert [tuple(part.weight.shape) for part in linear] == [(32, 32), (32, 32), (128, 32)]
    assert all(part.bias is None for part in linear)
    assert [[type(part) for part in layer] for layer in head.layers] == [  # type: ignore[union-attr]
        [nn.Linear, nn.BatchNorm1d, nn.ReLU],
        [nn.Linear, nn.BatchNorm1d, nn.ReLU],
        [nn.Linear, nn.BatchNorm1d],
    ]
    fixed = [name for name, parameter in head.named_parameters() if not parameter.requires_grad]
    assert fixed == ["layers.2.1.bias"]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_head_against_numpy(batch_norm: bool) -> None:
    torch.manual_seed(0)
    head = ContrastiveHead(5, 3, layers=2, batch_norm=batch_norm).double().train()
    x = np.random.default_rng(0).normal(size=(7, 5))
    w = {name: value.numpy().copy() for name, value in head.state_dict().items()}

    def layer(values: np.ndarray, number: int) -> np.ndarray:
        values = values @ w[f"layers.{number}.0.weight"].T
        if not batch_norm:
            return values + w[f"layers.{number}.0.bias"]
        return (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)  # scales are 1, shifts 0

    expected = layer(np.maximum(layer(x, 0), 0), 1)
    np.testing.assert_allclose(head(torch.tensor(x)).detach(), expected, atol=1e-12)


def test_one_layer_is_linear_and_empty_heads_are_refused() -> None:
    head = ContrastiveHead(4, 2, layers=1, batch_norm=False)
    x = torch.randn(3, 4)
    assert torch.equal(head(x), head.layers[0][0](x))  # type: ignore[index]
    with pytest.raises(LimbeckError, match="0 layers"):
        ContrastiveHead(4, layers=0)


@pytest.mark.parametrize("selector", [0, 1, 2, 3])
def test_features_are_those_of_the_layer(digits: ImageData, selector: int) -> None:
    model = projector(digits)
    head = model.head
    assert isinstance(head, ContrastiveHead)
    expected = model(images(digits)).features
    for layer in head.layers[:selector]:
        expected = layer(expected)
    if selector == 3:
        assert torch.equal(expected, model(images(digits)).logits)
    tuned = tap(copy.deepcopy(model), selector).eval()
    output = tuned(images(digits))
    assert torch.equal(output.features, expected)
    assert output.features.shape[1] == (16 if selector == 3 else 64)
    assert torch.equal(output.logits, torch.zeros(6, 10))  # the classifier knows nothing yet
    assert tuned.classes == digits.classes
    # Encoder and layers train, and so does the classifier.
    tuned.train()
    logits = tuned(images(digits)).logits
    nn.functional.cross_entropy(logits, torch.arange(6)).backward()
    classifier = tuned.body.get_submodule(str(tuned.head))
    assert classifier.weight.grad is not None
    with torch.no_grad():
        classifier.weight.normal_()  # type: ignore[operator]
    nn.functional.cross_entropy(tuned(images(digits)).logits, torch.arange(6)).backward()
    without = [name for name, p in tuned.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("selector", [0, 2])
def test_saved_and_loaded(digits: ImageData, tmp_path: Path, selector: int) -> None:
    model = projector(digits)
    loaded = load(save(model, tmp_path / "projector"))
    assert torch.equal(loaded(images(digits)).logits, model(images(digits)).logits)
    tuned = tap(model, selector).eval()
    with torch.no_grad():
        tuned.body.get_submodule(str(tuned.head)).weight.normal_()  # type: ignore[operator]
    again = load(save(tuned, tmp_path / "tuned"))
    assert isinstance(again, Classifier)
    assert torch.equal(again(images(digits)).logits, tuned(images(digits)).logits)
    assert again.factory == "tapped"
    by_name = build("tapped", digits.task, encoder={"name": "cnn", "width": 4}, outputs=16, selector=selector)
    assert by_name.state_dict().keys() == tuned.state_dict().keys()


def test_an_encoder_that_is_its_own_head(digits: ImageData) -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = project_contrastively(Classifier(body, digits.classes, channels=1), digits.task)
    assert model.factory is None
    tuned = tap(model, 1)
    assert tuned(images(digits)).features.shape == (6, 64)


def test_wrong_input(digits: ImageData) -> None:
    model = projector(digits)
    for selector in (-1, 4):
        with pytest.raises(LimbeckError, match=f"selector is {selector}; the head has 3 layers"):
            tap(model, selector)
    other = project(build("cnn", digits.task, width=4), digits.task, hidden=8, bottleneck=4, outputs=8)
    with pytest.raises(LimbeckError, match="the projector has a ProjectionHead"):
        tap(other, 1)
    convolutional = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 10, 1))
    encoder = Classifier(nn.Sequential(convolutional, nn.Flatten()), digits.classes, channels=1)
    with pytest.raises(LimbeckError, match="is a convolution"):
        tap(project_contrastively(encoder, digits.task), 1)
