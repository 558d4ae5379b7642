"""What a classifier does on data it is not trained on: its logits and the numbers that are reported."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.data.samples import ImageData, Samples
from limbeck.data.stream import eval_batches
from limbeck.errors import LimbeckError
from limbeck.metrics import cost
from limbeck.metrics.calibration import fit_temperature
from limbeck.metrics.classification import summary
from limbeck.models.experts import ExpertClassifier
from limbeck.stages.evaluation.shipped import as_shipped
from limbeck.stages.files import write_atomically


class Predictions(NamedTuple):
    """A model's logits on some samples, in the order of the samples, on the CPU.

    Attributes:
        logits: float32 [N, C].
        labels: int64 [N], -1 where unknown.
        indices: int64 [N], the samples' stable positions in their source.
    """

    logits: Tensor
    labels: Tensor
    indices: Tensor


def predict_logits(
    model: nn.Module, samples: Samples, batch_size: int = 256, device: torch.device | str | None = None
) -> Predictions:
    """The logits of every sample, in order and without augmentation.

    Args:
        model: returns a :class:`~limbeck.models.classifier.ClassifierOutput` for a batch.
        samples: what to label.
        batch_size: samples a forward pass.
        device: where to compute; by default where the model is. The model ends where it was.

    Raises:
        LimbeckError: logits that are not numbers, with the first such sample's index.
    """
    logits, labels, indices = [], [], []
    with as_shipped(model, device) as place:
        for batch in eval_batches(samples, batch_size):
            logits.append(model(_asked(batch, place)).logits.float().cpu())
            labels.append(batch["label"])
            indices.append(batch["index"])
    predictions = Predictions(torch.cat(logits), torch.cat(labels), torch.cat(indices))
    broken = F.log_softmax(predictions.logits, dim=-1).isnan().any(dim=-1)
    if broken.any():
        raise LimbeckError(
            f"the model gives NaN or infinite logits for {int(broken.sum())} of {len(samples)} samples, "
            f"first for index {int(predictions.indices[broken][0])}: broken weights, or diverged training"
        )
    return predictions


def _asked(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch as a model is asked: whatever comes with the images, without their labels."""
    return {name: value.to(device) for name, value in batch.items() if name not in ("label", "hidden_label", "index")}


def measure(
    model: nn.Module, data: ImageData, batch_size: int = 256, device: torch.device | str | None = None
) -> tuple[dict[str, float], Predictions]:
    """The metrics of a trained classifier on the test split, and the logits they come from.

    ``temperature`` is fitted on the validation split and never sees the test split; ``scaled/...`` are the
    metrics of the test logits divided by it. The accuracies of the groups many, medium and few are there
    where the training data are long-tailed (:attr:`limbeck.data.data.Data.long_tailed`). Cost is that of
    one image.

    Args:
        model: returns a :class:`~limbeck.models.classifier.ClassifierOutput` with one logit for each of the
            data's classes, in their order.
        data: test, validation and training split.
        batch_size: samples a forward pass.
        device: where to compute; by default where the model is. The model ends where it was.

    Returns:
        Flat metrics (fractions in [0, 1], ``latency_ms`` in milliseconds) and the predictions on the test
        split.

    Raises:
        LimbeckError: samples without a label, or logits that are not numbers.
    """
    test = predict_logits(model, data.test, batch_size, device)
    validation = predict_logits(model, data.validation, batch_size, device)
    metrics = quality(test, train_counts=_tail_counts(data))
    metrics |= {f"validation/{name}": value for name, value in quality(validation).items()}
    metrics["temperature"] = fit_temperature(validation.logits, validation.labels)
    scaled = test._replace(logits=test.logits / metrics["temperature"])
    metrics |= {f"scaled/{name}": value for name, value in quality(scaled).items()}
    return metrics | costs(model, data.test, device), test


def _tail_counts(data: ImageData) -> Tensor | None:
    """Training samples of each class, int64 [C], where they are long-tailed."""
    return torch.tensor(data.class_counts) if data.long_tailed else None


def quality(predictions: Predictions, train_counts: Tensor | None = None) -> dict[str, float]:
    """What :func:`limbeck.metrics.classification.summary` says about predictions.

    Args:
        predictions: logits and labels.
        train_counts: int64 [C], training samples of each class, for accuracies by class group.

    Raises:
        LimbeckError: samples without a label.
    """
    unknown = predictions.labels < 0
    if unknown.any():
        raise LimbeckError(
            f"{int(unknown.sum())} of {len(unknown)} samples have no label (first: index "
            f"{int(predictions.indices[unknown][0])}), and metrics need all of them"
        )
    return summary(predictions.logits, predictions.labels, train_counts=train_counts)


def costs(model: nn.Module, samples: Samples, device: torch.device | str | None = None) -> dict[str, float]:
    """``parameters``, ``macs`` and ``latency_ms`` of one forward pass over the first of ``samples``."""
    with as_shipped(model, device) as place:
        batch = _asked(next(iter(eval_batches(samples, 1))), place)
        return {
            "parameters": float(cost.parameters(model)),
            "macs": float(cost.macs(model, batch)),
            "latency_ms": cost.latency_ms(model, batch, repeats=20),
        }


def validate(model: nn.Module, data: ImageData, device: torch.device) -> dict[str, float]:
    """The summary of the validation split, during training."""
    predictions = predict_logits(model, data.validation, device=device)
    return summary(predictions.logits, predictions.labels)


def measure_experts(
    model: ExpertClassifier, data: ImageData, device: torch.device | str | None = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """What each expert of a classifier would score alone on the test split.

    Returns:
        The metrics of :func:`quality` as ``NAME/METRIC``, and the logits [N, C] of each expert by its name.
    """
    with as_shipped(model, device) as place:
        batches = (_asked(batch, place) for batch in eval_batches(data.test, 256))
        said = [model.each(batch).logits.float().cpu() for batch in batches]
    logits = dict(zip(model.experts, torch.cat(said).unbind(1), strict=True))
    counts = _tail_counts(data)
    metrics = {
        f"{name}/{key}": value
        for name, own in logits.items()
        for key, value in quality(Predictions(own, data.test.labels, data.test.indices), counts).items()
    }
    return metrics, logits


def report(
    model: nn.Module, teachers: Mapping[str, nn.Module], data: ImageData, folder: Path, device: torch.device
) -> dict[str, float]:
    """The metrics of student and teachers, and of the student's experts where it has several.

    Writes ``predictions.safetensors`` into ``folder``.
    """
    metrics, predictions = measure(model, data, device=device)
    tensors = {"logits": predictions.logits, "label": predictions.labels, "index": predictions.indices}
    if isinstance(model, ExpertClassifier) and len(model.experts) > 1:
        of_experts, logits = measure_experts(model, data, device)
        metrics |= of_experts
        tensors |= {f"{name}_logits": own for name, own in logits.items()}
    for name, teacher in teachers.items():
        of_teacher, predictions = measure(teacher, data, device=device)
        tensors[f"{name}_logits"] = predictions.logits
        metrics |= {f"{name}/{key}": value for key, value in of_teacher.items()}
    classes = {"classes": json.dumps(list(data.classes))}
    write_atomically(
        folder / "predictions.safetensors",
        # Not save_file, whose error on a full disk is no OSError.
        lambda part: part.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}, classes)),
    )
    return metrics
