"""What a segmenter does on images it is not trained on."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from limbeck.data.mask_samples import MaskData, MaskSamples
from limbeck.data.stream import eval_batches
from limbeck.errors import LimbeckError
from limbeck.metrics import cost
from limbeck.metrics.segmentation import miou, pixel_accuracy, pixel_confusion
from limbeck.stages.evaluation.shipped import as_shipped
from limbeck.stages.files import write_atomically

SHOWN = 12
"""Test images, evenly spaced, that are kept for the report."""

BATCH_SIZE = 16


def validate(model: nn.Module, data: MaskData, device: torch.device) -> dict[str, float]:
    """``miou`` and ``pixel_accuracy`` on the validation split."""
    return _quality(count_pixels(model, data.validation, device))


def report(
    model: nn.Module, teachers: Mapping[str, nn.Module], data: MaskData, folder: Path, device: torch.device
) -> dict[str, float]:
    """The metrics on the test split, as ``validation/...`` on the validation split, and of the teachers.

    ``segmentation.safetensors`` in ``folder`` holds the ``confusion`` matrix int64 [C true, C predicted] of the test
    split; some test images ``image`` uint8 [N, channels, H, W] with ``truth`` and ``predicted`` int16 [N, H, W] (-1 =
    no class) and ``index`` int64 [N]; and the names of the classes as metadata.
    """
    matrix = count_pixels(model, data.test, device)
    metrics = _quality(matrix)
    metrics |= {f"validation/{name}": value for name, value in validate(model, data, device).items()}
    metrics["parameters"] = float(cost.parameters(model))
    for name, teacher in teachers.items():
        of_teacher = _quality(count_pixels(teacher, data.test, device))
        metrics |= {f"{name}/{key}": value for key, value in of_teacher.items()}

    chosen = torch.linspace(0, len(data.test) - 1, min(SHOWN, len(data.test))).long()
    batch = data.test.fetch(chosen)
    tensors = {
        "confusion": matrix,
        "image": (255 * batch["image"]).round().to(torch.uint8),
        "truth": batch["mask"].to(torch.int16),
        "predicted": torch.cat([predict_masks(model, part, device) for part in batch["image"].split(BATCH_SIZE)]),
        "index": batch["index"],
    }
    tensors["predicted"] = tensors["predicted"].to(torch.int16)
    content = safetensors.torch.save(
        {name: value.contiguous() for name, value in tensors.items()}, {"classes": json.dumps(list(data.classes))}
    )
    # Not save_file, whose error on a full disk is no OSError.
    write_atomically(folder / "segmentation.safetensors", lambda part: part.write_bytes(content))
    return metrics


def predict_masks(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """The most probable class of each pixel of images [B, C, H, W], int64 [B, H, W] on the CPU.

    Raises:
        LimbeckError: logits that are not numbers.
    """
    with as_shipped(model, device) as place:
        logits = model({"image": images.to(place)}).logits
        if not logits.isfinite().all():
            raise LimbeckError("the model gives NaN or infinite logits: broken weights, or diverged training")
        return logits.argmax(1).cpu()


def count_pixels(model: nn.Module, samples: MaskSamples, device: torch.device) -> Tensor:
    """The confusion matrix int64 [C true, C predicted] over all pixels of ``samples`` that have a class.

    Raises:
        LimbeckError: logits that are not numbers, or no pixel with a class.
    """
    count = len(samples.classes)
    matrix = torch.zeros(count, count, dtype=torch.int64)
    for batch in eval_batches(samples, BATCH_SIZE):
        matrix += pixel_confusion(predict_masks(model, batch["image"], device), batch["mask"], count)
    return matrix


def _quality(matrix: Tensor) -> dict[str, float]:
    return {"miou": miou(matrix), "pixel_accuracy": pixel_accuracy(matrix)}
