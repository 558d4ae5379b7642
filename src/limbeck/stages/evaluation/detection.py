"""What a detector does on data it is not trained on: average precision, and its boxes as labels."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from limbeck.data.boxes import BoxData, BoxSamples
from limbeck.data.stream import eval_batches
from limbeck.errors import LimbeckError
from limbeck.labels.boxes import Detections, box_jitter_uncertainty, confident_boxes, jitter_boxes
from limbeck.metrics import cost
from limbeck.metrics.detection import box_precision, iou_with_truth, mean_average_precision
from limbeck.metrics.similarity import spearman
from limbeck.models.detector import Detector
from limbeck.stages.evaluation.shipped import as_shipped
from limbeck.stages.files import write_atomically

FILE = "boxes.safetensors"
# Those of Soft Teacher (arXiv 2106.09018), the same for every method: what a box must score to be a pseudo label, and
# for its uncertainty to be measured; and the copies behind that.
CONFIDENT, ROUGH = 0.9, 0.5
JITTER_TIMES, JITTER_SCALE = 10, 0.06
_BATCH = 16


class Found(NamedTuple):
    """A detector's boxes on some samples, and the truth, each image's in its own tensors, on the CPU.

    Attributes:
        boxes: for each image float32 [K, 4].
        labels: int64 [K].
        scores: float32 [K].
        uncertainty: float32 [K], how far jittered copies lie apart once refined; NaN below the rough cut.
        truth: float32 [M, 4].
        truth_labels: int64 [M].
        indices: int64 [N], the samples' stable positions in their source.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    scores: list[Tensor]
    uncertainty: list[Tensor]
    truth: list[Tensor]
    truth_labels: list[Tensor]
    indices: Tensor


def find_boxes(
    model: Detector, samples: BoxSamples, device: torch.device | str | None = None, *, jitter: bool = False
) -> Found:
    """The boxes of every sample, in order and without augmentation.

    Args:
        model: the detector; it ends where it was.
        samples: images whose boxes, known or hidden, are the truth.
        device: where to compute; by default where the model is.
        jitter: measure the uncertainty of boxes above the rough cut, with draws that are the same every time.

    Raises:
        LimbeckError: boxes or scores that are not numbers, with the first such sample's index.
    """
    found = Found([], [], [], [], [], [], samples.indices)
    generator = torch.Generator().manual_seed(0)
    with as_shipped(model, device) as place:
        for batch in eval_batches(samples, _BATCH):
            features = model.features(batch["image"].to(place))
            detections = model.detect(features)
            uncertainty = torch.full_like(detections.scores, torch.nan)
            if jitter:
                rough = confident_boxes(detections, ROUGH)
                copies = jitter_boxes(rough.boxes.cpu(), JITTER_TIMES, JITTER_SCALE, generator).to(place)
                spread = box_jitter_uncertainty(model.refine(features, copies, rough.labels))
                uncertainty = torch.where(rough.labels >= 0, spread, torch.nan)
            _append(found, detections, uncertainty, batch)
    return found


def _append(found: Found, detections: Detections, uncertainty: Tensor, batch: Mapping[str, Tensor]) -> None:
    boxes, labels, scores = (part.cpu() for part in detections)
    finite = (boxes.isfinite().all(-1) & scores.isfinite()).all(-1)
    if not finite.all():
        raise LimbeckError(
            f"the detector gives boxes that are no numbers, first for index {int(batch['index'][~finite][0])}: broken "
            "weights, or diverged training"
        )
    hidden = "hidden_" if "hidden_boxes" in batch else ""
    truth, truth_labels = batch[f"{hidden}boxes"], batch[f"{hidden}box_label"]
    for image in range(len(boxes)):
        used, real = labels[image] >= 0, truth_labels[image] >= 0
        found.boxes.append(boxes[image, used].float())
        found.labels.append(labels[image, used])
        found.scores.append(scores[image, used].float())
        found.uncertainty.append(uncertainty[image].cpu()[used].float())
        found.truth.append(truth[image, real])
        found.truth_labels.append(truth_labels[image, real])


def average_precision(found: Found, classes: tuple[str, ...]) -> dict[str, float]:
    """``map``, ``map_50``, ``map_75`` and ``map/CLASS``."""
    said = list(zip(found.boxes, found.labels, found.scores, strict=True))
    return mean_average_precision(said, list(zip(found.truth, found.truth_labels, strict=True)), classes)


def as_labels(found: Found) -> dict[str, float]:
    """How good boxes would be as labels: what is unknown for want of boxes is left out.

    Returns:
        ``pseudo_precision`` and ``pseudo_recall``: of boxes with score > 0.9, the fraction that lie on a true box of
        their class with IoU 0.5, and their number that do over the number of true boxes; ``pseudo_precision_75``: with
        IoU 0.75. ``uncertainty_spearman`` and ``score_spearman``: rank correlation of -u and of the score with the IoU,
        over boxes with score > 0.5 (a box that touches no true box of its class has IoU 0).
    """
    rows = zip(found.boxes, found.labels, found.truth, found.truth_labels, strict=True)
    iou = torch.cat([iou_with_truth(*row) for row in rows])
    score, uncertainty = torch.cat(found.scores), torch.cat(found.uncertainty)
    confident = score > CONFIDENT
    metrics: dict[str, float] = {}
    if confident.any():
        metrics["pseudo_precision"] = float(box_precision(iou, confident).value)
        metrics["pseudo_precision_75"] = float(box_precision(iou, confident, 0.75).value)
    true_boxes = sum(len(labels) for labels in found.truth_labels)
    if true_boxes:
        metrics["pseudo_recall"] = float(((iou >= 0.5) & confident).sum()) / true_boxes
    rough = score > ROUGH
    if rough.sum() > 1 and iou[rough].unique().numel() > 1:
        metrics["uncertainty_spearman"] = spearman(-uncertainty[rough], iou[rough])
        metrics["score_spearman"] = spearman(score[rough], iou[rough])
    return metrics


def validate(model: nn.Module, data: BoxData, device: torch.device) -> dict[str, float]:
    """Average precision on the validation split, during training."""
    assert isinstance(model, Detector)
    return average_precision(find_boxes(model, data.validation, device), data.classes)


def report(
    model: nn.Module, teachers: Mapping[str, nn.Module], data: BoxData, folder: Path, device: torch.device
) -> dict[str, float]:
    """Average precision on test and validation split, and the boxes as labels of the unlabelled images.

    Writes ``boxes.safetensors`` into ``folder``: the boxes found and the true ones of the test images.
    """
    assert isinstance(model, Detector)
    test = find_boxes(model, data.test, device)
    metrics = average_precision(test, data.classes)
    metrics |= {f"validation/{name}": value for name, value in validate(model, data, device).items()}
    if data.unlabeled is not None:
        metrics |= as_labels(find_boxes(model, data.unlabeled, device, jitter=True))
    metrics["parameters"] = float(cost.parameters(model))
    for name, teacher in teachers.items():
        metrics |= {f"{name}/{key}": value for key, value in validate(teacher, data, device).items()}
    tensors = {
        "boxes": torch.cat(test.boxes),
        "labels": torch.cat(test.labels),
        "scores": torch.cat(test.scores),
        "count": torch.tensor([len(part) for part in test.labels]),
        "truth": torch.cat(test.truth),
        "truth_labels": torch.cat(test.truth_labels),
        "truth_count": torch.tensor([len(part) for part in test.truth_labels]),
        "index": test.indices,
    }
    classes = {"classes": json.dumps(list(data.classes))}
    content = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()}, classes)
    # Not save_file, whose error on a full disk is no OSError.
    write_atomically(folder / FILE, lambda part: part.write_bytes(content))
    return metrics
