"""How good boxes are: average precision as COCO measures it, and pseudo boxes against the truth."""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError, require
from limbeck.losses.reduction import Mean

Boxes = Float[Tensor, "boxes 4"]
Found = tuple[Float[Tensor, "_ 4"], Int[Tensor, " _"], Float[Tensor, " _"]]
Truth = tuple[Float[Tensor, "_ 4"], Int[Tensor, " _"]]


def mean_average_precision(found: Sequence[Found], truth: Sequence[Truth], classes: Sequence[str]) -> dict[str, float]:
    """COCO's average precision, computed by faster-coco-eval: at most 100 boxes an image, 101 recall points.

    Args:
        found: boxes (x1, y1, x2, y2 in pixels), labels and scores of each image.
        truth: true boxes and their labels of each image.
        classes: names of the classes; those of which there is no true box do not count.

    Returns:
        ``map`` (mean over IoU from 0.50 to 0.95), ``map_50``, ``map_75``, and ``map/CLASS`` for each class with a true
        box; NaN where there is no true box at all.

    Raises:
        LimbeckError: faster-coco-eval is not installed, or the numbers of images differ.
    """
    if len(found) != len(truth):
        raise LimbeckError(f"boxes were found in {len(found)} images, and there is the truth of {len(truth)}")
    library: Any = require("faster_coco_eval", extra="detection")
    annotations = [
        {"image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for image, (boxes, labels) in enumerate(truth)
        for box, label in zip(_corner_and_size(boxes), labels.tolist(), strict=True)
    ]
    present = sorted({int(row["category_id"]) for row in annotations})
    if not present:
        return {"map": math.nan, "map_50": math.nan, "map_75": math.nan}
    detections = [
        {"image_id": image, "category_id": label, "bbox": box, "score": score}
        for image, (boxes, labels, scores) in enumerate(found)
        for box, label, score in zip(_corner_and_size(boxes), labels.tolist(), scores.tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        images = library.COCO(
            {
                "images": [{"id": image} for image in range(len(truth))],
                "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
                "annotations": [{"id": number, **row} for number, row in enumerate(annotations, start=1)],
            }
        )
        evaluation = library.COCOeval_faster(images, images.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # [IoU thresholds, recalls, classes, areas, numbers of boxes]; all areas, 100 boxes.
    precision = torch.as_tensor(evaluation.eval["precision"]).double()[:, :, :, 0, -1].mean(1)
    of_class = {f"map/{classes[number]}": float(precision[:, number].mean()) for number in present}
    mean = precision[:, present].mean(1)
    return {"map": float(mean.mean()), "map_50": float(mean[0]), "map_75": float(mean[5]), **of_class}


def iou_with_truth(
    boxes: Float[Tensor, "*batch boxes 4"],
    labels: Int[Tensor, "*batch boxes"],
    truth: Float[Tensor, "*batch truth 4"],
    truth_labels: Int[Tensor, "*batch truth"],
) -> Float[Tensor, "*batch boxes"]:
    """For each box the largest IoU with a true box of its class; 0 where there is none (label -1: no box)."""
    if truth.shape[-2] == 0:
        return boxes.new_zeros(boxes.shape[:-1])
    one, other = boxes.unsqueeze(-2), truth.unsqueeze(-3)
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    union = _area(one) + _area(other) - shared
    matches = (labels.unsqueeze(-1) == truth_labels.unsqueeze(-2)) & (truth_labels >= 0).unsqueeze(-2) & (union > 0)
    return torch.where(matches, shared / union, 0.0).amax(-1)


def box_precision(iou: Float[Tensor, "*boxes"], used: Bool[Tensor, "*boxes"], threshold: float | int = 0.5) -> Mean:
    """Fraction of the boxes in use that lie on a true box of their class with at least that IoU.

    Args:
        iou: of each box, see :func:`iou_with_truth`.
        used: which boxes count.
        threshold: IoU from which a box is right.
    """
    return Mean.of((iou >= threshold).to(iou.dtype), used)


def _area(boxes: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape"]:
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def _corner_and_size(boxes: Boxes) -> list[list[float]]:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
