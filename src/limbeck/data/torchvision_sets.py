"""Classification data sets of torchvision."""

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from PIL import Image

from limbeck.data.files import fit, resize
from limbeck.data.places import cache, existing, holder
from limbeck.data.samples import Samples, Source
from limbeck.data.user_sets import wrap
from limbeck.errors import LimbeckError, nearest

_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}}

# Name -> arguments of each part, and whether a mirrored image is still an image of its class.
_SETS: dict[str, tuple[dict[str, dict[str, Any]], bool]] = {
    "CIFAR10": (_TRAIN_FLAG, True),
    "CIFAR100": (_TRAIN_FLAG, True),
    "DTD": (_THREE, True),
    "FGVCAircraft": (_THREE, True),
    "FashionMNIST": (_TRAIN_FLAG, True),
    "Flowers102": (_THREE, True),
    "Food101": (_TWO, True),
    "GTSRB": (_TWO, False),
    "KMNIST": (_TRAIN_FLAG, False),
    "MNIST": (_TRAIN_FLAG, False),
    "OxfordIIITPet": ({"train": {"split": "trainval"}, "test": {"split": "test"}}, True),
    "PCAM": (_THREE, True),
    "STL10": (_TWO, True),
    "SVHN": (_TWO, False),
    "USPS": (_TRAIN_FLAG, False),
}


def torchvision(dataset: str, root: str | None = None, size: int | None = None) -> Source:
    """A classification data set of torchvision, with its own splits.

    Args:
        dataset: its name in ``torchvision.datasets``, such as FashionMNIST or CIFAR10.
        root: the folder that torchvision keeps it in, which may be read-only: what has to be unpacked is
            unpacked in the cache folder. Where not given, the folder below ``$LIMBECK_DATA`` that holds a
            folder of this name, else it is downloaded into the cache folder (``$LIMBECK_CACHE``,
            ``~/.cache/limbeck``).
        size: images are resized to this many pixels a side, from the centre square; null leaves them as they
            are.

    Raises:
        LimbeckError: there is no such data set, or it can neither be found nor downloaded.
    """
    if dataset not in _SETS:
        raise LimbeckError(
            f"there is no torchvision data set {dataset!r} here; known: {', '.join(_SETS)}.{nearest(dataset, _SETS)}"
        )
    from torchvision import datasets

    arguments, flip = _SETS[dataset]
    build = getattr(datasets, dataset)
    given = holder(dataset) if root is None else existing(root)

    def open_parts(folder: Path, download: bool) -> dict[str, Any]:
        return {part: build(str(folder), download=download, **options) for part, options in arguments.items()}

    opened = _open(dataset, given, open_parts)
    parts = {part: _samples(raw, size, f"{dataset}, {part}") for part, raw in opened.items()}
    return Source(parts["train"], parts["test"], parts.get("validation"), flip)


def _open(dataset: str, given: Path | None, open_parts: Callable[[Path, bool], dict[str, Any]]) -> dict[str, Any]:
    for folder in (given, cache() / "torchvision" / dataset):
        if folder is not None and folder.is_dir():
            try:
                return open_parts(folder, False)
            except (RuntimeError, FileNotFoundError):  # not complete, or not unpacked
                continue
    final = cache() / "torchvision" / dataset
    with _only_one(final):
        if not final.is_dir():  # another process may have made it meanwhile
            # Made beside its place and moved there when it is whole, so that nobody ever sees a part of it.
            with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{dataset}-") as scratch:
                unfinished = Path(scratch) / dataset
                unfinished.mkdir()
                if given is not None and (given / dataset).is_dir():
                    shutil.copytree(given / dataset, unfinished / dataset)
                try:
                    open_parts(unfinished, True)
                except (RuntimeError, OSError, URLError) as error:
                    raise LimbeckError(
                        f"{dataset} is not in {given or '$LIMBECK_DATA'} and cannot be downloaded ({error})"
                    ) from error
                unfinished.rename(final)
    try:
        return open_parts(final, False)
    except (RuntimeError, FileNotFoundError) as error:
        raise LimbeckError(f"{final} is damaged ({error}); remove this folder, it will be made again") from error


@contextmanager
def _only_one(final: Path) -> Iterator[None]:
    final.parent.mkdir(parents=True, exist_ok=True)
    with (final.parent / f"{final.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, even by a process that is killed
        yield


def _samples(raw: Any, size: int | None, where: str) -> Samples:
    data, labels = getattr(raw, "data", None), getattr(raw, "targets", getattr(raw, "labels", None))
    if isinstance(data, torch.Tensor | np.ndarray) and labels is not None:
        pixels = torch.as_tensor(data)
        if pixels.ndim == 3:
            pixels = pixels[:, None]
        elif pixels.shape[-1] == 3:
            pixels = pixels.permute(0, 3, 1, 2)
        numbers = torch.as_tensor(labels).to(torch.int64)
        names = getattr(raw, "classes", None) or range(int(numbers.max()) + 1)
        return Samples(resize(pixels, size), numbers, tuple(map(str, names)))
    raw.transform = _Fit(size, where)
    return wrap(raw, where=where)


class _Fit:
    """:func:`limbeck.data.files.fit` as a transform that workers can pickle."""

    def __init__(self, size: int | None, where: str) -> None:
        self.size, self.where = size, where

    def __call__(self, image: Image.Image) -> Image.Image:
        return fit(image.convert("RGB"), self.size, self.where)
