"""Logits and metrics of a model, and that measuring leaves no trace."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from limbeck.data.samples import ImageData, Samples
from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier
from limbeck.stages.evaluation import as_shipped, costs, measure, predict_logits


def with_dropout_and_batch_norm(classes: tuple[str, ...]) -> Classifier:
    body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, len(classes)))
    return Classifier(body, classes, channels=1, size=8)


class Wanders(nn.Module):
    """Draws from the global random state even in eval mode, as some libraries' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(image.flatten(1)) + torch.rand(())


def test_logits_are_those_of_one_pass_in_order(digits: ImageData, nearest_mean: Classifier) -> None:
    predictions = predict_logits(nearest_mean, digits.test, batch_size=64)
    whole = digits.test.fetch(torch.arange(len(digits.test)))
    # A matrix product may sum in another order for another batch size: a few last bits of logits up to 100.
    torch.testing.assert_close(predictions.logits, nearest_mean(whole).logits.detach(), rtol=0, atol=2e-5)
    assert torch.equal(predictions.labels, whole["label"])
    assert torch.equal(predictions.indices, digits.test.indices)
    assert not predictions.logits.requires_grad


def test_half_precision_model_gives_float32_logits(digits: ImageData, nearest_mean: Classifier) -> None:
    single = predict_logits(nearest_mean, digits.test).logits
    half = predict_logits(nearest_mean.bfloat16(), digits.test).logits
    assert half.dtype == torch.float32
    # bfloat16 keeps 8 bits: nearly all decisions stay.
    assert (half.argmax(1) == single.argmax(1)).float().mean() > 0.97


def test_every_module_gets_its_own_mode_back(digits: ImageData) -> None:
    model = with_dropout_and_batch_norm(digits.classes).train()
    frozen = model.body[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = predict_logits(model, digits.test).logits
    assert model.training
    assert model.body[2].training
    assert not frozen.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(first, predict_logits(model.eval(), digits.test).logits), "dropout was on"


def test_modes_come_back_after_an_error(nearest_mean: Classifier) -> None:
    nearest_mean.train()
    # An image in 8 bits is refused by the model, in the middle of the block.
    with pytest.raises(LimbeckError, match="uint8"), as_shipped(nearest_mean):
        nearest_mean(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    assert nearest_mean.training
    assert torch.is_grad_enabled()


def test_global_random_state_is_untouched(digits: ImageData) -> None:
    model = Classifier(Wanders(), digits.classes, channels=1, size=8)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    measure(model, digits)
    assert torch.equal(torch.rand(3), expected)


def test_metrics_agree_with_scikit_learn(digits: ImageData, nearest_mean: Classifier) -> None:
    metrics, predictions = measure(nearest_mean, digits)
    logits, labels = predictions.logits.double(), predictions.labels.numpy()
    probabilities = logits.softmax(1).numpy()
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, probabilities.argmax(1)), abs=1e-6)
    assert metrics["nll"] == pytest.approx(log_loss(labels, probabilities, labels=range(10)), rel=1e-5)
    assert metrics["accuracy"] > 0.85
    assert metrics["parameters"] == 650
    assert metrics["macs"] == 640
    assert metrics["latency_ms"] > 0


def test_temperature_is_the_best_one_on_validation(digits: ImageData, nearest_mean: Classifier) -> None:
    metrics, test = measure(nearest_mean, digits)
    validation = predict_logits(nearest_mean, digits.validation)

    def nll(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
        return float(nn.functional.cross_entropy(logits.double() / temperature, labels))

    best = nll(validation.logits, validation.labels, metrics["temperature"])
    for factor in (0.98, 1.02):
        assert nll(validation.logits, validation.labels, factor * metrics["temperature"]) > best
    assert abs(metrics["temperature"] - 1) > 0.05, "the model is calibrated as it is: this test shows nothing"
    expected = nll(test.logits, test.labels, metrics["temperature"])
    assert metrics["scaled/nll"] == pytest.approx(expected, rel=1e-5)
    assert metrics["scaled/accuracy"] == metrics["accuracy"]
    assert metrics["scaled/nll"] < metrics["nll"]


def test_validation_metrics_are_those_of_the_validation_split(digits: ImageData, nearest_mean: Classifier) -> None:
    metrics, _ = measure(nearest_mean, digits)
    logits, labels, _ = predict_logits(nearest_mean, digits.validation)
    expected = (logits.argmax(1) == labels).double().mean().item()
    assert metrics["validation/accuracy"] == pytest.approx(expected, abs=1e-6)


def test_group_accuracies_are_for_long_tails_only(digits: ImageData, nearest_mean: Classifier) -> None:
    from limbeck.data.load import load

    balanced, _ = measure(nearest_mean, digits)
    assert not [name for name in balanced if name.endswith(("_many", "_medium", "_few"))]
    tail = load("digits", seed=0, view="none", imbalance=50)
    metrics, (logits, labels, _) = measure(nearest_mean, tail)
    counts = np.bincount(tail.train.labels.numpy(), minlength=10)
    right = (logits.argmax(1) == labels).numpy()
    expected = np.mean([right[labels.numpy() == rare].mean() for rare in np.flatnonzero(counts < 20)])
    assert metrics["accuracy_few"] == pytest.approx(expected, abs=1e-6)


def test_broken_weights_are_named(digits: ImageData, nearest_mean: Classifier) -> None:
    with torch.no_grad():
        nearest_mean.body[1].weight[0, 0] = float("nan")
    with pytest.raises(LimbeckError, match=rf"NaN or infinite logits .* index {int(digits.test.indices[0])}"):
        predict_logits(nearest_mean, digits.test)


def test_samples_without_labels_have_logits_and_no_metrics(digits: ImageData, nearest_mean: Classifier) -> None:
    import dataclasses

    hidden = digits.test.unlabel()
    assert isinstance(hidden, Samples)
    assert torch.equal(predict_logits(nearest_mean, hidden).labels, torch.full((len(hidden),), -1))
    with pytest.raises(LimbeckError, match=r"449 of 449 samples have no label \(first: index"):
        measure(nearest_mean, dataclasses.replace(digits, test=hidden))


def test_costs_are_of_one_image(digits: ImageData, nearest_mean: Classifier) -> None:
    assert costs(nearest_mean, digits.test)["macs"] == 640
