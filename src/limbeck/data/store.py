"""Labels on disk: logits of views that can be made again, so that a training reads them and runs no teacher.

A store is a folder of arrays and ``schema.json``, which is written last. Row ``epoch * N + position`` holds what was
said of one sample in one epoch: its view is a function of (seed, epoch, index, view name), and where samples were mixed
the row says with which other row, in which box or by which share. So any batch of rows can be made again bit for bit,
whatever else was in the batch when it was labelled.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.data import Records
from limbeck.errors import LimbeckError

FORMAT_VERSION = 1
SCHEMA = "schema.json"

Mix = Literal["none", "mixup", "cutmix"]


@dataclass(frozen=True)
class Schema:
    """What the labels of a store are about.

    Attributes:
        classes: names of the columns.
        samples: N, how many samples were labelled.
        epochs: how many views of each there are room for.
        view: name of the view.
        flip: whether it may mirror.
        seed: of the views and of the order of the stream.
        stream: name of the stream, which decides its order too.
        batch_size: samples a batch when they were labelled.
        mix: how two samples were mixed before they were labelled.
        storage: precision of the logits.
        teacher: SHA-256 of whoever labelled.
        data: SHA-256 of the samples.
    """

    classes: tuple[str, ...]
    samples: int
    epochs: int
    view: str
    flip: bool
    seed: int
    stream: str
    batch_size: int
    mix: Mix
    storage: Literal["float16", "float32"]
    teacher: str
    data: str

    @property
    def rows(self) -> int:
        """Epochs times samples."""
        return self.epochs * self.samples


class Rows(NamedTuple):
    """Some rows of a store.

    Attributes:
        logits: float32 [B, C].
        partner: int64 [B], the row each was mixed with, itself where it was not; -1 where there is no label.
        share: float32 [B], what is left of the sample itself.
        box: int64 [B, 4], top, bottom, left and right of what was pasted; empty where nothing was.
    """

    logits: Tensor
    partner: Tensor
    share: Tensor
    box: Tensor


class LabelStore:
    """The arrays of a store, memory-mapped; see the module.

    Args:
        schema: what they are about.
        arrays: logits, partner, share and box, one row an epoch and sample.
    """

    def __init__(self, schema: Schema, arrays: dict[str, NDArray[Any]]) -> None:
        self.schema = schema
        self.arrays = arrays

    @classmethod
    def create(cls, folder: Path, schema: Schema, *, resume: bool = False) -> Self:
        """Arrays to be written, or those that an interrupted labelling left behind; opened only when finished.

        Args:
            folder: where they are made.
            schema: as they will be described.
            resume: go on with what is there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[Any]] = {}
        for name, (dtype, shape) in _layout(schema).items():
            file = folder / f"{name}.npy"
            mode: Literal["r+", "w+"] = "r+" if resume else "w+"
            arrays[name] = (
                np.lib.format.open_memmap(file, mode)
                if resume
                else np.lib.format.open_memmap(file, mode, dtype=dtype, shape=shape)
            )
        if not resume:
            arrays["partner"][:] = -1
        return cls(schema, arrays)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """A finished store, read-only.

        Raises:
            LimbeckError: there is none, it is unfinished, of another version, or does not hold what it says.
        """
        path = folder / SCHEMA
        if not path.is_file():
            raise LimbeckError(f"{folder} holds no {SCHEMA}: not a store of labels, or its labelling was interrupted")
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise LimbeckError(f"{path} has format_version {version!r}; this limbeck reads {FORMAT_VERSION}")
        try:
            schema = Schema(**{**content, "classes": tuple(content["classes"])})
        except (KeyError, TypeError) as error:
            raise LimbeckError(f"{path} is not the description of a store: {error}") from None
        arrays: dict[str, NDArray[Any]] = {}
        for name, (dtype, shape) in _layout(schema).items():
            try:
                arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise LimbeckError(f"{folder / name}.npy cannot be read ({error}); label again") from None
            if arrays[name].shape != shape or arrays[name].dtype != dtype:
                raise LimbeckError(
                    f"{folder / name}.npy is {arrays[name].dtype} {arrays[name].shape}, {SCHEMA} says {dtype} {shape}"
                )
        return cls(schema, arrays)

    @classmethod
    def blank(cls, schema: Schema) -> Self:
        """A store in which every row says nothing (equal logits) of an unmixed sample; takes next to no memory."""
        arrays = {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (dtype, shape) in _layout(schema).items()}
        return cls(schema, {**arrays, "partner": np.arange(schema.rows)})

    def write(self, rows: Tensor, labels: Rows) -> None:
        """Put labels into rows, int64 [B].

        Raises:
            LimbeckError: a logit that is not finite, or too large for the storage.
        """
        with np.errstate(over="ignore"):  # refused below, by name
            logits = labels.logits.float().cpu().numpy().astype(self.arrays["logits"].dtype)
        if not np.isfinite(logits).all():
            raise LimbeckError(
                f"a logit of row {int(rows[int((~np.isfinite(logits)).any(1).argmax())])} is not finite in "
                f"{self.schema.storage}: a broken teacher, or take storage float32"
            )
        at = rows.numpy()
        self.arrays["logits"][at] = logits
        for name in ("partner", "share", "box"):
            self.arrays[name][at] = getattr(labels, name).numpy()

    def flush(self) -> None:
        """Let the disk hold what was written."""
        for array in self.arrays.values():
            if isinstance(array, np.memmap):
                array.flush()

    def description(self) -> dict[str, Any]:
        """What ``schema.json`` holds: whoever made the labels writes it when all of them are there."""
        return {"format_version": FORMAT_VERSION, **asdict(self.schema)}

    def read(self, rows: Tensor) -> Rows:
        """The labels of rows, int64 [B]."""
        at = rows.numpy()
        found = {name: torch.from_numpy(np.array(array[at])) for name, array in self.arrays.items()}
        return Rows(found["logits"].float(), found["partner"], found["share"], found["box"].long())


def samples_hash(samples: Records) -> str:
    """SHA-256 of what a training on these samples depends on."""
    digest = hashlib.sha256()
    samples.update_hash(digest)
    return digest.hexdigest()


def _layout(schema: Schema) -> dict[str, tuple[Any, tuple[int, ...]]]:
    rows = schema.rows
    return {
        "logits": (np.dtype(schema.storage), (rows, len(schema.classes))),
        "partner": (np.dtype(np.int64), (rows,)),
        "share": (np.dtype(np.float32), (rows,)),
        "box": (np.dtype(np.int16), (rows, 4)),
    }
