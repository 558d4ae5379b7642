"""Data sets of images with one label a pixel."""

import torch

from limbeck.data.digits import digits
from limbeck.data.mask_files import read_pairs
from limbeck.data.mask_samples import MaskData, MaskSamples, MemoryMasks, split_masks
from limbeck.data.pixels import Memory
from limbeck.data.places import existing, holder
from limbeck.data.random import derive, uniforms
from limbeck.data.samples import Samples
from limbeck.errors import LimbeckError

__all__ = ["CAMVID_CLASSES", "MaskData", "MaskSamples", "camvid", "digit_masks", "mask_folder"]

CAMVID_CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)
_INK = 0.3
"""From this share of full ink on a pixel belongs to its digit."""


def camvid(
    seed: int,
    root: str | None = None,
    labeled: float = 0.125,
    size: list[int] | None = None,
    crop: list[int] | None = None,
    min_scale: float = 0.5,
    max_scale: float = 2.0,
    flip: bool = True,
) -> MaskData:
    """Road scenes (CamVid in the 11 classes of SegNet): 367 training, 101 validation and 233 test images.

    Brostow, Fauqueur, Cipolla 2009; masks of arXiv 1511.00561. Which training images are labelled is drawn with the
    seed of the run; the rest is the unlabelled data. Class 11, unlabelled, is ignored.

    Args:
        seed: the seed of the run.
        root: folder that holds train, trainannot, val, valannot, test and testannot; null looks for it below
            $LIMBECK_DATA.
        labeled: share of the training images whose masks are known; 1 leaves none unlabelled.
        size: height and width in pixels to which the images are resized; null keeps them as they are.
        crop: height and width of training views; null takes those of the images.
        min_scale: smallest zoom of training views.
        max_scale: largest zoom of training views.
        flip: whether views may mirror images.

    Raises:
        LimbeckError: the data are not there or cannot be read, or an option out of range.
    """
    folder = holder("trainannot") if root is None else existing(root)
    if folder is None:
        raise LimbeckError(
            "camvid is not there: set LIMBECK_DATA to a folder with camvid/train and camvid/trainannot, or give root"
        )
    count, shape = len(CAMVID_CLASSES), _pair("size", size)
    names = {"train": "train", "validation": "val", "test": "test"}
    whole = {
        part: read_pairs(folder / name, folder / f"{name}annot", count, [count], shape) for part, name in names.items()
    }
    return split_masks(
        whole,
        CAMVID_CLASSES,
        labeled=labeled,
        seed=seed,
        crop=_pair("crop", crop),
        scale=(min_scale, max_scale),
        flip=flip,
    )


def mask_folder(
    seed: int,
    root: str,
    classes: list[str],
    ignore: list[int] | None = None,
    labeled: float = 1.0,
    size: list[int] | None = None,
    crop: list[int] | None = None,
    min_scale: float = 0.5,
    max_scale: float = 2.0,
    flip: bool = True,
) -> MaskData:
    """Folders of images and masks of your own.

    ``ROOT/train/images/*`` and ``ROOT/train/masks/*.png`` of the same stems, and the same below ``validation`` and
    ``test``. Pixels of a mask are class numbers in the order of ``classes``.

    Args:
        seed: the seed of the run.
        root: the folder; ``~`` and variables such as ``$LIMBECK_DATA`` are filled in.
        classes: the names of the classes.
        ignore: numbers of pixels without a class; null takes 255.
        labeled: share of the training images whose masks are trained on; 1 leaves none unlabelled.
        size: height and width in pixels to which the images are resized; null keeps them as they are, which then
            must all have one size.
        crop: height and width of training views; null takes those of the images.
        min_scale: smallest zoom of training views.
        max_scale: largest zoom of training views.
        flip: whether views may mirror images.

    Raises:
        LimbeckError: a folder, image or mask is missing or cannot be read, or an option out of range.
    """
    folder = existing(root)
    ignored, shape = [255] if ignore is None else ignore, _pair("size", size)
    whole = {
        part: read_pairs(folder / part / "images", folder / part / "masks", len(classes), ignored, shape)
        for part in ("train", "validation", "test")
    }
    return split_masks(
        whole,
        tuple(classes),
        labeled=labeled,
        seed=seed,
        crop=_pair("crop", crop),
        scale=(min_scale, max_scale),
        flip=flip,
    )


def digit_masks(
    seed: int,
    labeled: float = 0.125,
    height: int = 32,
    width: int = 48,
    train: int = 320,
    validation: int = 60,
    test: int = 120,
    digits_each: int = 2,
    crop: list[int] | None = None,
    min_scale: float = 0.75,
    max_scale: float = 1.5,
) -> MaskData:
    """Scikit-learn's handwritten digits, enlarged to 16 x 16, on an uneven noisy ground; no data needed.

    Eleven classes: the ground, and each digit. The images are the same in every run; those of the test split show
    digits that the others do not. Which training images are labelled is drawn with the seed of the run.

    Args:
        seed: the seed of the run.
        labeled: share of the training images whose masks are known; 1 leaves none unlabelled.
        height: of the images in pixels, at least 16.
        width: of the images in pixels, at least 16.
        train: number of training images, labelled or not.
        validation: number of validation images.
        test: number of test images.
        digits_each: digits an image; later ones may cover earlier ones.
        crop: height and width of training views; null takes those of the images.
        min_scale: smallest zoom of training views.
        max_scale: largest zoom of training views.

    Raises:
        LimbeckError: an option out of range.
    """
    if min(height, width) < 16 or min(train, validation, test, digits_each) < 1:
        raise LimbeckError(
            f"digit_masks: {height} x {width} must be at least 16 x 16, and train, validation, test and digits_each "
            "at least 1"
        )
    source = digits()
    whole = {}
    for part, count in (("train", train), ("validation", validation), ("test", test)):
        drawn = source.test if part == "test" else source.train
        images, masks = _scenes(drawn, count, (height, width), digits_each, derive(0, "digit_masks", part))
        whole[part] = Memory(images, f"digit_masks, {part}"), MemoryMasks(masks, 11, f"digit_masks, {part}")
    classes = ("ground", *(str(digit) for digit in range(10)))
    return split_masks(
        whole, classes, labeled=labeled, seed=seed, crop=_pair("crop", crop), scale=(min_scale, max_scale), flip=False
    )


def _pair(name: str, value: list[int] | None) -> tuple[int, int] | None:
    if value is None:
        return None
    if len(value) != 2 or min(value) < 1:
        raise LimbeckError(f"{name} is {value}; it must be a height and a width in pixels, such as [96, 128]")
    return value[0], value[1]


def _scenes(
    source: Samples, count: int, size: tuple[int, int], each: int, key: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 1, H, W] in [0, 1] and masks int64 [N, H, W]."""
    height, width = size
    places = torch.arange(count).numpy()
    noise = torch.from_numpy(uniforms(derive(key, "noise"), places, draws=height * width)).float()
    light = torch.from_numpy(uniforms(derive(key, "light"), places, draws=2)).float()
    # A slope from left to right, so that brightness alone does not tell ink from ground.
    slope = light[:, :1] + (light[:, 1:] - light[:, :1]) * torch.linspace(0, 1, width)
    images = (0.5 * slope[:, None, :] + 0.2 * noise.view(count, height, width)).unsqueeze(1)
    masks = torch.zeros(count, height, width, dtype=torch.int64)
    for number in range(each):
        draws = uniforms(derive(key, "digit", number), places, draws=3)
        chosen = source.fetch(torch.from_numpy((draws[:, 0] * len(source)).astype("int64")))
        ink = chosen["image"].repeat_interleave(2, -1).repeat_interleave(2, -2)[:, 0]
        for at in range(count):
            top, left = int(draws[at, 1] * (height - 15)), int(draws[at, 2] * (width - 15))
            patch = (at, slice(top, top + 16), slice(left, left + 16))
            masks[patch] = torch.where(ink[at] >= _INK, 1 + chosen["label"][at], masks[patch])
            images[at, 0][patch[1:]] = torch.maximum(images[at, 0][patch[1:]], ink[at])
    return images.clamp_(0, 1), masks
