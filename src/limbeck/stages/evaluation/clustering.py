"""How well the clusters of images agree with classes that nobody told the model."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from limbeck.data.samples import ImageData, Samples
from limbeck.data.semi_supervised import without_labels
from limbeck.metrics import cost
from limbeck.metrics.clustering import clustering_summary, contingency
from limbeck.stages.evaluation.classification import Predictions, predict_logits
from limbeck.stages.files import write_atomically

CLUSTERS = "clusters.safetensors"
"""Of the test samples: ``cluster``, ``label`` and ``index`` int64 [N], ``probability`` [N] of the cluster.

``training``: the training images of each cluster and class, int64 [K, C], where their classes are known.
"""


def quality(predictions: Predictions, counts: Tensor | None = None) -> dict[str, float]:
    """What :func:`~limbeck.metrics.clustering.clustering_summary` says of the samples whose class is known."""
    known = predictions.labels >= 0
    if not known.any():
        return {}
    return clustering_summary(predictions.logits[known].argmax(-1), predictions.labels[known], counts)


def measure_training(
    model: nn.Module, data: ImageData, device: torch.device | str | None = None
) -> tuple[dict[str, float], Tensor | None]:
    """The metrics on all training images, and how many each cluster has of each class, int64 [K, C]; where known."""
    samples: Samples = without_labels(data)
    hidden = samples.hidden_labels
    if hidden is None or not (hidden >= 0).any():
        return {}, None
    said = predict_logits(model, samples, device=device)
    known, shape = hidden >= 0, (said.logits.shape[1], len(data.classes))
    table = contingency(said.logits[known].argmax(-1), hidden[known], shape=shape)
    return quality(said._replace(labels=hidden)), table.long()


def validate(model: nn.Module, data: ImageData, device: torch.device) -> dict[str, float]:
    """The summary of the validation split, during training."""
    return quality(predict_logits(model, data.validation, device=device))


def report(
    model: nn.Module, teachers: Mapping[str, nn.Module], data: ImageData, folder: Path, device: torch.device
) -> dict[str, float]:
    """The summary of the test split, ``train/...`` of the training images; writes ``clusters.safetensors``."""
    said = predict_logits(model, data.test, device=device)
    training, table = measure_training(model, data, device)
    metrics = quality(said, None if table is None else table.sum(0))
    metrics |= {f"train/{name}": value for name, value in training.items()}
    metrics |= {f"validation/{name}": value for name, value in validate(model, data, device).items()}
    probability, best = said.logits.softmax(-1).max(-1)
    tensors = {"cluster": best, "probability": probability, "label": said.labels, "index": said.indices}
    if table is not None:
        tensors["training"] = table
    content = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})
    write_atomically(folder / CLUSTERS, lambda part: part.write_bytes(content))
    return metrics | {"parameters": float(cost.parameters(model))}
