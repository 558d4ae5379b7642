"""The blood cells of BCCD as they lie on disk: JPEG images and Pascal VOC annotations."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limbeck.data.places import existing, holder
from limbeck.errors import LimbeckError

CLASSES = ("RBC", "WBC", "Platelets")
_PARTS = {"train": "train", "validation": "val", "test": "test"}

Part = tuple[Tensor, list[Tensor], list[Tensor]]


def annotated_cells(root: str | None, size: int) -> tuple[dict[str, Part], tuple[str, ...], int]:
    """Images, boxes and labels of each split.

    Args:
        root: folder that holds JPEGImages, Annotations and ImageSets; null looks for BCCD below $LIMBECK_DATA.
        size: height in pixels to which the images are resized, their proportions kept.

    Returns:
        For train, validation and test: images uint8 [N, 3, H, W], a list of boxes float32 [M, 4] and one of labels
        int64 [M]; the names of the classes; and the number of boxes without area, which are left out.

    Raises:
        LimbeckError: a folder or file is missing or is not what it should be.
    """
    if size < 16:
        raise LimbeckError(f"size is {size}; images must be at least 16 pixels high")
    folder = _folder(root)
    parts: dict[str, Part] = {}
    left_out = 0
    for part, name in _PARTS.items():
        names = existing(folder / "ImageSets" / "Main" / f"{name}.txt").read_text(encoding="utf-8").split()
        images, boxes, labels = [], [], []
        for stem in names:
            picture, scale = _picture(folder / "JPEGImages" / f"{stem}.jpg", size)
            found, classes, empty = _objects(folder / "Annotations" / f"{stem}.xml")
            images.append(picture)
            limit = torch.tensor([picture.shape[2], picture.shape[1]] * 2)
            boxes.append((found * scale).minimum(limit))
            labels.append(classes)
            left_out += empty
        if len({image.shape for image in images}) != 1:
            raise LimbeckError(f"{folder}, {name}: images of different shapes")
        parts[part] = torch.stack(images), boxes, labels
    return parts, CLASSES, left_out


def _folder(root: str | None) -> Path:
    if root is not None:
        return existing(root)
    parent = holder("BCCD")
    if parent is None:
        raise LimbeckError(
            "the data of BCCD (github.com/Shenggan/BCCD_Dataset) were not found: set LIMBECK_DATA to a folder that "
            "holds */BCCD, or data.root to the folder with JPEGImages, Annotations and ImageSets"
        )
    return parent / "BCCD"


def _picture(path: Path, height: int) -> tuple[Tensor, float]:
    """An image uint8 [3, height, W], and by how much it was enlarged."""
    try:
        with Image.open(existing(path)) as opened:
            scale = height / opened.height
            resized = opened.convert("RGB").resize((round(opened.width * scale), height), Image.Resampling.BILINEAR)
    except OSError as error:
        raise LimbeckError(f"{path}: not a readable image ({error})") from None
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous(), scale


def _objects(path: Path) -> tuple[Tensor, Tensor, int]:
    """Boxes, labels, and how many boxes have no area."""
    boxes, labels, empty = [], [], 0
    try:
        for item in ET.parse(existing(path)).iter("object"):
            name = item.findtext("name")
            if name not in CLASSES:
                raise LimbeckError(f"{path}: class {name!r}, expected one of {', '.join(CLASSES)}")
            corners = [float(item.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")]
            if not (corners[0] < corners[2] and corners[1] < corners[3]):
                empty += 1
                continue
            boxes.append(corners)
            labels.append(CLASSES.index(name))
    except (ET.ParseError, ValueError) as error:
        raise LimbeckError(f"{path}: not a Pascal VOC annotation ({error})") from None
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), empty
