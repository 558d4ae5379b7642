"""What a classifier of rows does on rows it is not trained on."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from limbeck.data.bags import Bags
from limbeck.data.rows import Rows, TableData
from limbeck.data.stream import eval_batches
from limbeck.errors import LimbeckError
from limbeck.metrics import cost
from limbeck.metrics.calibration import fit_temperature
from limbeck.metrics.ranking import auc
from limbeck.stages.evaluation.classification import Predictions, quality
from limbeck.stages.evaluation.shipped import as_shipped
from limbeck.stages.files import write_atomically

BAGS = "bags.safetensors"
"""Of the training bags: ``share`` of positives in truth, mean ``probability`` of the positive class, and the share
``counted`` of rows for which it is the more probable one, all float32 [B]; ``size`` int64, rows a bag."""


def predict_rows(model: nn.Module, rows: Rows, device: torch.device | str | None = None) -> Predictions:
    """The logits of every row, in order.

    Args:
        model: returns a :class:`~limbeck.models.classifier.ClassifierOutput` for rows.
        rows: what to classify.
        device: where to compute; by default where the model is. The model ends where it was.

    Raises:
        LimbeckError: logits that are not numbers, with the first such row's index.
    """
    with as_shipped(model, device) as place:
        parts = [model({"row": batch["row"].to(place)}).logits.float().cpu() for batch in eval_batches(rows, 4096)]
    logits = torch.cat(parts)
    broken = ~logits.isfinite().all(-1)
    if broken.any():
        raise LimbeckError(
            f"the model gives NaN or infinite logits for {int(broken.sum())} of {len(rows)} rows, first for index "
            f"{int(rows.indices[broken][0])}: broken weights, or diverged training"
        )
    return Predictions(logits, rows.labels, rows.indices)


def validate(model: nn.Module, data: TableData, device: torch.device) -> dict[str, float]:
    """The summary of the validation split and, of two classes, the ``auc`` of the second one."""
    return _quality(predict_rows(model, data.validation, device))


def report(
    model: nn.Module, teachers: Mapping[str, nn.Module], data: TableData, folder: Path, device: torch.device
) -> dict[str, float]:
    """The metrics on the test split, as ``validation/...`` on the validation split, and of the teachers.

    ``scaled/...`` are those of the test logits divided by ``temperature``, which is fitted on the validation split.
    Writes ``predictions.safetensors`` into ``folder``, as for images, and ``bags.safetensors`` where the training rows
    lie in bags.
    """
    test, validation = (predict_rows(model, rows, device) for rows in (data.test, data.validation))
    metrics = _quality(test) | {f"validation/{name}": value for name, value in _quality(validation).items()}
    metrics["temperature"] = fit_temperature(validation.logits, validation.labels)
    scaled = test._replace(logits=test.logits / metrics["temperature"])
    metrics |= {f"scaled/{name}": value for name, value in quality(scaled).items()}
    metrics["parameters"] = float(cost.parameters(model))
    tensors = {"logits": test.logits, "label": test.labels, "index": test.indices}
    for name, teacher in teachers.items():
        found = predict_rows(teacher, data.test, device)
        tensors[f"{name}_logits"] = found.logits
        metrics |= {f"{name}/{key}": value for key, value in _quality(found).items()}
    content = safetensors.torch.save(
        {name: value.contiguous() for name, value in tensors.items()}, {"classes": json.dumps(list(data.classes))}
    )
    # Not save_file, whose error on a full disk is no OSError.
    write_atomically(folder / "predictions.safetensors", lambda part: part.write_bytes(content))
    bags = data.train if isinstance(data.train, Bags) else data.train.bags
    if bags is not None:
        shares = safetensors.torch.save(predict_shares(model, bags, device))
        write_atomically(folder / BAGS, lambda part: part.write_bytes(shares))
    return metrics


def predict_shares(model: nn.Module, bags: Bags, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """What a model says of the share of positives in each bag, beside the truth: the content of ``bags.safetensors``.

    Args:
        model: as in :func:`predict_rows`.
        bags: whose counts are known.
        device: where to compute; by default where the model is.
    """
    logits = predict_rows(model, bags.instances(), device).logits.view(len(bags), bags.size, 2)
    return {
        "share": bags.counts / bags.size,
        "probability": logits.softmax(-1)[..., 1].mean(1),
        "counted": logits.argmax(-1).float().mean(1),
        "size": torch.tensor(bags.size),
    }


def _quality(said: Predictions) -> dict[str, float]:
    found = quality(said)
    if said.logits.shape[1] == 2:
        found["auc"] = auc(said.logits[:, 1] - said.logits[:, 0], said.labels)
    return found
