"""Images with boxes in the layout of COCO: folders of pictures and one JSON file of annotations a split."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limbeck.data.boxes import BoxData, BoxSamples, PaddedBoxes
from limbeck.data.pixels import Images, Lazy
from limbeck.data.places import existing
from limbeck.data.random import derive, permutation
from limbeck.errors import LimbeckError

_GREY = 128  # what the canvas is filled with beside the picture


def coco(
    seed: int,
    root: str,
    size: list[int],
    labeled: float = 0.1,
    validation: int = 500,
    min_scale: float = 1.0,
    flip: bool = True,
) -> BoxData:
    """Pictures of any size with boxes, in the layout of COCO (arXiv 1405.0312).

    Every picture is resized to fit into a canvas, its proportions kept, and lies in the top left corner of it. Boxes
    of crowds and boxes without area are left out. The test data are val2017. Which training images are held out for
    validation, and which are labelled, is drawn with the seed of the run.

    Args:
        seed: the seed of the run.
        root: folder that holds train2017, val2017 and annotations/instances_*.json.
        size: height and width of the canvas in pixels.
        labeled: share of the training images whose boxes are known; 1 leaves none unlabelled.
        validation: number of training images that are held out.
        min_scale: training views make images smaller by a factor drawn uniformly from [min_scale, 1].
        flip: whether views may mirror images.

    Raises:
        LimbeckError: a folder or file is missing or is not what it should be, or an option out of range.
    """
    if len(size) != 2 or min(size) < 16:
        raise LimbeckError(f"size is {list(size)}; it must be height and width of the canvas, at least 16 pixels each")
    if not 0 < labeled <= 1:
        raise LimbeckError(f"labeled is {labeled}; it must be a share above 0 and at most 1")
    folder = existing(root)
    images, truth, classes, out_of_train = _part(folder, "train2017", (size[0], size[1]))
    test_images, test_truth, test_classes, out_of_test = _part(folder, "val2017", (size[0], size[1]))
    if test_classes != classes:
        raise LimbeckError(f"{folder}: the categories of train2017 and val2017 differ")
    if not 0 < validation < len(images):
        raise LimbeckError(f"validation is {validation}; {len(images)} training images allow 1 to {len(images) - 1}")
    order = torch.from_numpy(permutation(derive(seed, "validation"), len(images)))
    held_out, rest = order[:validation].sort().values, order[validation:].sort().values
    order = rest[torch.from_numpy(permutation(derive(seed, "labeled"), len(rest)))]
    known = max(1, round(labeled * len(rest)))

    def samples(rows: Tensor, labeled: bool = True) -> BoxSamples:
        rows = rows.sort().values
        return BoxSamples(images, truth.take(rows), classes, rows=rows, labeled=labeled, min_scale=min_scale)

    return BoxData(
        train=samples(order[:known]),
        validation=samples(held_out),
        test=BoxSamples(test_images, test_truth, classes),
        unlabeled=samples(order[known:], labeled=False) if known < len(rest) else None,
        classes=classes,
        flip=flip,
        left_out=out_of_train + out_of_test,
    )


def _part(folder: Path, name: str, size: tuple[int, int]) -> tuple[Images, PaddedBoxes, tuple[str, ...], int]:
    """Pictures, boxes in pixels of the canvas, names of the classes, and how many boxes were left out."""
    file = existing(folder / "annotations" / f"instances_{name}.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = {int(image["id"]): at for at, image in enumerate(content["images"])}
        scales = [min(size[0] / image["height"], size[1] / image["width"]) for image in content["images"]]
        paths = [folder / name / image["file_name"] for image in content["images"]]
        numbers = {int(category["id"]): at for at, category in enumerate(content["categories"])}
        boxes: list[list[list[float]]] = [[] for _ in rows]
        labels: list[list[int]] = [[] for _ in rows]
        left_out = 0
        for annotation in content["annotations"]:
            at = rows[int(annotation["image_id"])]
            box = _corners(annotation["bbox"], scales[at], size)
            if annotation.get("iscrowd") or box[2] <= box[0] or box[3] <= box[1]:
                left_out += 1
                continue
            boxes[at].append(box)
            labels[at].append(numbers[int(annotation["category_id"])])
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise LimbeckError(f"{file}: not annotations in the layout of COCO ({type(error).__name__}: {error})") from None
    classes = tuple(str(category["name"]) for category in content["categories"])
    truth = PaddedBoxes.of(
        [torch.tensor(part).reshape(-1, 4) for part in boxes],
        [torch.tensor(part, dtype=torch.int64) for part in labels],
    )
    images = Lazy(functools.partial(_picture, paths, size), len(paths), (3, *size), functools.partial(_where, paths))
    return images, truth, classes, left_out


def _corners(box: list[float], scale: float, size: tuple[int, int]) -> list[float]:
    x, y, width, height = box
    return [
        min(max(value * scale, 0.0), float(limit))
        for value, limit in ((x, size[1]), (y, size[0]), (x + width, size[1]), (y + height, size[0]))
    ]


def _picture(paths: list[Path], size: tuple[int, int], row: int) -> Tensor:
    try:
        with Image.open(existing(paths[row])) as opened:
            scale = min(size[0] / opened.height, size[1] / opened.width)
            shape = max(1, round(opened.width * scale)), max(1, round(opened.height * scale))
            resized: Any = np.asarray(opened.convert("RGB").resize(shape, Image.Resampling.BILINEAR))
    except OSError as error:
        raise LimbeckError(f"{paths[row]}: not a readable image ({error})") from None
    canvas = torch.full((3, *size), _GREY, dtype=torch.uint8)
    canvas[:, : shape[1], : shape[0]] = torch.from_numpy(resized.copy()).permute(2, 0, 1)
    return canvas


def _where(paths: list[Path], row: int) -> str:
    return str(paths[row])
