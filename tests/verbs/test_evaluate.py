"""The verb evaluate."""

from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck import models
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier
from limbeck.stages.evaluation import measure, predict_logits
from limbeck.verbs.evaluate import evaluate


def without_latency(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "latency_ms"}


def test_loaded_data_and_data_by_name_agree(digits: ImageData, nearest_mean: Classifier) -> None:
    expected, _ = measure(nearest_mean, digits)
    assert without_latency(evaluate(nearest_mean, digits)) == without_latency(expected)
    assert without_latency(evaluate(nearest_mean, "digits", seed=0, view="none")) == without_latency(expected)


def test_a_saved_model_is_measured_from_its_folder(tmp_path: Path, digits: ImageData) -> None:
    torch.manual_seed(0)
    model = models.build("mlp", digits.task, hidden=16)
    models.save(model, tmp_path / "model")
    expected = without_latency(evaluate(model, digits))
    assert without_latency(evaluate(tmp_path / "model", digits)) == expected
    assert without_latency(evaluate(str(tmp_path / "model"), digits)) == expected


@pytest.mark.parametrize("split", ["validation", "train"])
def test_other_splits(split: str, digits: ImageData, nearest_mean: Classifier) -> None:
    metrics = evaluate(nearest_mean, digits, split=split)  # type: ignore[arg-type]
    logits, labels, _ = predict_logits(nearest_mean, getattr(digits, split))
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-6)
    assert "temperature" not in metrics


def test_samples_alone(digits: ImageData, nearest_mean: Classifier) -> None:
    first = digits.test.subset(range(50))
    logits, labels, _ = predict_logits(nearest_mean, first)
    expected = (logits.argmax(1) == labels).double().mean().item()
    assert evaluate(nearest_mean, first)["accuracy"] == pytest.approx(expected, abs=1e-6)


def test_classes_in_another_order_are_matched_by_name(digits: ImageData, nearest_mean: Classifier) -> None:
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    linear = nn.Linear(64, 10)
    with torch.no_grad():
        linear.weight.copy_(nearest_mean.body[1].weight[order])
        linear.bias.copy_(nearest_mean.body[1].bias[order])
    names = [digits.classes[number] for number in order]
    shuffled = Classifier(nn.Sequential(nn.Flatten(), linear), names, channels=1, size=8)
    expected, found = evaluate(nearest_mean, digits), evaluate(shuffled, digits)
    assert found["accuracy"] == expected["accuracy"]
    assert found["nll"] == pytest.approx(expected["nll"], rel=1e-6)
    assert found["parameters"] == expected["parameters"]
    assert linear.weight.requires_grad, "the caller's model was frozen"


def test_missing_classes_are_refused_with_both_lists(digits: ImageData) -> None:
    other = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), ["cat", "dog"], channels=1, size=8)
    with pytest.raises(LimbeckError, match=r"cat.*dog") as caught:
        evaluate(other, digits)
    assert "'7'" in str(caught.value)


def test_the_model_is_as_before(digits: ImageData, nearest_mean: Classifier) -> None:
    nearest_mean.train()
    evaluate(nearest_mean, digits)
    assert nearest_mean.training
    assert all(parameter.requires_grad for parameter in nearest_mean.parameters())


def test_wrong_words_are_named(digits: ImageData, nearest_mean: Classifier) -> None:
    with pytest.raises(LimbeckError, match=r"unknown split 'tets'\. Did you mean 'test'\?"):
        evaluate(nearest_mean, digits, split="tets")  # type: ignore[arg-type]
    with pytest.raises(LimbeckError, match="train_size: only for data given by name"):
        evaluate(nearest_mean, digits, train_size=10)
    with pytest.raises(LimbeckError, match="batch_size is 0"):
        evaluate(nearest_mean, digits, batch_size=0)
