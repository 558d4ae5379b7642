"""How well the clusters of images agree with classes that nobody told the model."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from limbeck.data.samples import ImageData, Samples
from limbeck.data.semi_supervised import without_labels
from limbeck.metrics import cost
from limbeck.metrics.clustering import clustering_summary
from limbeck.stages.evaluation.classification import Predictions, predict_logits
from limbeck.stages.files import write_atomically

CLUSTERS = "clusters.safetensors"
"""Of the test samples: ``cluster``, ``label`` and ``index`` int64 [N], ``probability`` [N] of the cluster."""


def quality(predictions: Predictions, counts: Tensor | None = None) -> dict[str, float]:
    """What :func:`~limbeck.metrics.clustering.clustering_summary` says of the samples whose class is known."""
    known = predictions.labels >= 0
    if not known.any():
        return {}
    return clustering_summary(predictions.logits[known].argmax(-1), predictions.labels[known], counts)


def measure_training(
    model: nn.Module, data: ImageData, device: torch.device | str | None = None
) -> tuple[dict[str, float], Tensor | None]:
    """The metrics on all training images, and how many of each class there are, int64 [C]; both where it is known."""
    samples: Samples = without_labels(data)
    hidden = samples.hidden_labels
    if hidden is None or not (hidden >= 0).any():
        return {}, None
    said = predict_logits(model, samples, device=device)
    counts = hidden[hidden >= 0].bincount(minlength=len(data.classes))
    return quality(said._replace(labels=hidden)), counts


def validate(model: nn.Module, data: ImageData, device: torch.device) -> dict[str, float]:
    """The summary of the validation split, during training."""
    return quality(predict_logits(model, data.validation, device=device))


def report(
    model: nn.Module, teachers: Mapping[str, nn.Module], data: ImageData, folder: Path, device: torch.device
) -> dict[str, float]:
    """The summary of the test split, ``train/...`` of the training images; writes ``clusters.safetensors``."""
    said = predict_logits(model, data.test, device=device)
    training, counts = measure_training(model, data, device)
    metrics = quality(said, counts) | {f"train/{name}": value for name, value in training.items()}
    metrics |= {f"validation/{name}": value for name, value in validate(model, data, device).items()}
    probability, best = said.logits.softmax(-1).max(-1)
    tensors = {"cluster": best, "probability": probability, "label": said.labels, "index": said.indices}
    content = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})
    write_atomically(folder / CLUSTERS, lambda part: part.write_bytes(content))
    return metrics | {"parameters": float(cost.parameters(model))}
