"""What the features of a model say about classes that it was not trained on."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.data.samples import ImageData, Samples
from limbeck.data.stream import eval_batches
from limbeck.errors import LimbeckError
from limbeck.metrics import cost
from limbeck.metrics.probes import knn_accuracy
from limbeck.stages.evaluation.shipped import as_shipped


def embed(
    model: nn.Module, samples: Samples, batch_size: int = 256, device: torch.device | str | None = None
) -> Tensor:
    """The features of every sample, float32 [N, D] on the CPU, in order, without augmentation, in eval mode.

    Args:
        model: returns a :class:`~limbeck.models.classifier.ClassifierOutput` with features.
        samples: what to embed.
        batch_size: samples a forward pass.
        device: where to compute; by default where the model is. The model ends where it was.

    Raises:
        LimbeckError: the model gives no features.
    """
    found = []
    with as_shipped(model, device) as place:
        for batch in eval_batches(samples, batch_size):
            features = model({"image": batch["image"].to(place)}).features
            if features is None:
                raise LimbeckError(
                    f"{type(model).__name__} gives no features: no classification head was found whose input they are"
                )
            found.append(features.float().cpu())
    return torch.cat(found)


def nearest_neighbours(
    model: nn.Module, data: ImageData, samples: Samples, device: torch.device | str | None = None
) -> float:
    """Accuracy on ``samples`` of the k nearest of the labelled training samples, k = 20.

    Raises:
        LimbeckError: no training sample has a label, or the model gives no features.
    """
    labelled = torch.nonzero(data.train.labels >= 0)[:, 0]
    if not len(labelled):
        raise LimbeckError("probing features needs labelled training samples, and the data have none")
    known = data.train.subset(labelled)
    return knn_accuracy(
        embed(model, known, device=device), known.labels, embed(model, samples, device=device), samples.labels
    )


def validate(model: nn.Module, data: ImageData, device: torch.device) -> dict[str, float]:
    """``knn_accuracy`` on the validation split, during training."""
    return {"knn_accuracy": nearest_neighbours(model, data, data.validation, device)}


def report(
    model: nn.Module, teachers: Mapping[str, nn.Module], data: ImageData, folder: Path, device: torch.device
) -> dict[str, float]:
    """``knn_accuracy`` of student and teachers on the test split; nothing is written into ``folder``."""
    metrics = {"knn_accuracy": nearest_neighbours(model, data, data.test, device)}
    metrics |= {f"validation/{name}": value for name, value in validate(model, data, device).items()}
    metrics["parameters"] = float(cost.parameters(model))
    return metrics | {
        f"{name}/knn_accuracy": nearest_neighbours(teacher, data, data.test, device)
        for name, teacher in teachers.items()
    }
