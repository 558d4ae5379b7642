"""Labels on disk: what a teacher says of views that can be made again, so that a training runs no teacher.

A store is a folder of Arrow files, memory-mapped when they are read: ``rows-*.arrow`` hold labels, ``samples.arrow``
which samples they are about, and ``store.json`` describes all of it. Row ``view * N + place`` is what was said of the
sample at ``place`` in one of its views. A view is a function of (seed, its number, the sample's index, its name), and
where samples were mixed the row says with which other row, in which box or by which share: any row can be made again
bit for bit, whatever else was in the batch when it was labelled.

Each file is written whole and then entered in ``store.json`` with its SHA-256: a labelling that was killed goes on
after the last file, without a lost or a doubled row. Any reader of Arrow streams can open the files, as in
``datasets.Dataset.from_file``.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.data.arrow import read_columns
from limbeck.data.codec import Codec, Columns, Kept, Storage, Tail
from limbeck.data.samples import Samples
from limbeck.errors import LimbeckError

FORMAT_VERSION = 2
MANIFEST = "store.json"
SAMPLES = "samples.arrow"
CHECKED = 512
"""Images that are compared where they are not in memory; all of those that are."""

Mix = Literal["none", "mixup", "cutmix"]


@dataclass(frozen=True)
class Schema:
    """What the labels of a store are about.

    Attributes:
        classes: names of the classes.
        samples: N, how many samples were labelled.
        views: how many views of each there is room for.
        view: name of the view.
        flip: whether it may mirror.
        seed: of the views, and of the order of the stream where ``ordered`` is false.
        kept: what of the logits is kept, see :class:`~limbeck.data.codec.Codec`.
        k: classes kept by top_k, else 0.
        storage: type of the stored numbers.
        mix: how two samples were mixed before they were labelled.
        ordered: rows lie in the order of their numbers; else in that of the stream that was labelled.
        stream: name of that stream.
        batch_size: samples a batch of it, which decides what is mixed with what.
        teacher: SHA-256 of whoever labelled.
    """

    classes: tuple[str, ...]
    samples: int
    views: int
    view: str
    flip: bool
    seed: int
    kept: Kept
    k: int
    storage: Storage
    mix: Mix
    ordered: bool
    stream: str
    batch_size: int
    teacher: str

    @property
    def rows(self) -> int:
        """Views times samples."""
        return self.views * self.samples

    @property
    def codec(self) -> Codec:
        """How a label becomes bytes."""
        return Codec(self.kept, len(self.classes), self.storage, self.k)

    @property
    def columns(self) -> dict[str, tuple[np.dtype[Any], int]]:
        """Name, type and numbers a row of every column."""
        found = dict(self.codec.columns)
        if self.mix != "none":
            found |= {
                "partner": (np.dtype(np.int64), 1),
                "share": (np.dtype(np.float32), 1),
                "box": (np.dtype(np.int16), 4),
            }
        return found if self.ordered else {"row": (np.dtype(np.int64), 1), **found}

    def encode(self, rows: Tensor, labels: "Rows") -> Columns:
        """Columns [B, width] of the labels of rows, int64 [B].

        Raises:
            LimbeckError: a logit that the storage cannot hold.
        """
        found = self.codec.encode(labels.logits)
        for name in self.columns.keys() - found.keys():
            values = rows if name == "row" else getattr(labels, name)
            found[name] = values.numpy().reshape(len(rows), -1).astype(self.columns[name][0])
        return found

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return sum(dtype.itemsize * width for dtype, width in self.columns.values())


class Rows(NamedTuple):
    """Some rows of a store.

    Attributes:
        logits: float32 [B, C]; logarithms of probabilities where only these were kept.
        partner: int64 [B], the row each was mixed with, itself where it was not.
        share: float32 [B], what is left of the sample itself.
        box: int64 [B, 4], top, bottom, left and right of what was pasted; empty where nothing was.
    """

    logits: Tensor
    partner: Tensor
    share: Tensor
    box: Tensor


class LabelStore:
    """The rows of a store, read-only and memory-mapped; see the module.

    Args:
        schema: what they are about.
        indices: int64 [N], the index of the sample at each place.
        pixels: uint64 [N], a hash of its image.
        parts: columns of each file, in the order of the files.
        tail: what becomes of the probability outside the top k, see :meth:`Codec.decode`.
        name: what the store is called in messages.
        version: changes when any label does.
    """

    def __init__(
        self,
        schema: Schema,
        indices: NDArray[np.int64],
        pixels: NDArray[np.uint64],
        parts: Sequence[Mapping[str, NDArray[Any]]],
        *,
        tail: Tail = "smooth",
        name: str = "the store",
        version: str = "",
    ) -> None:
        self.schema, self.tail, self.name, self.version = schema, tail, name, version
        self._indices, self._pixels, self._parts = indices, pixels, list(parts)
        self._place = np.full(int(indices.max()) + 1, -1, dtype=np.int64)
        self._place[indices] = np.arange(len(indices))
        first = next(iter(schema.columns))
        self._starts = np.cumsum([0, *(len(part[first]) for part in self._parts)])
        self._at: NDArray[np.int64] | None = None
        if not schema.ordered:
            self._at = np.full(schema.rows, -1, dtype=np.int64)
            for start, part in zip(self._starts, self._parts, strict=False):
                rows = part["row"][:, 0]
                self._at[rows] = start + np.arange(len(rows))

    @classmethod
    def open(cls, folder: Path, *, tail: Tail = "smooth") -> Self:
        """A finished store.

        Raises:
            LimbeckError: there is none, it is unfinished, of another version, or a file was changed.
        """
        schema, manifest = read_manifest(folder)
        done = sum(part["rows"] for part in manifest["files"])
        if done < manifest["planned"]:
            raise LimbeckError(
                f"{folder} holds {done} of {manifest['planned']} labels: its labelling was interrupted; the same "
                "command goes on"
            )
        for part in [manifest["samples"], *manifest["files"]]:
            file = folder / part["file"]
            if not file.is_file() or sha256(file) != part["sha256"]:
                raise LimbeckError(
                    f"{file} is missing or was changed since it was written; delete {folder} and label again"
                )
        about = read_columns(folder / SAMPLES)
        parts = [read_columns(folder / part["file"]) for part in manifest["files"]]
        version = hashlib.sha256(repr([part["sha256"] for part in manifest["files"]]).encode()).hexdigest()
        return cls(
            schema, about["index"][:, 0], about["pixels"][:, 0], parts, tail=tail, name=str(folder), version=version
        )

    @classmethod
    def blank(cls, schema: Schema, samples: Samples) -> Self:
        """A store in which every row says nothing (equal logits) of an unmixed sample; takes next to no memory."""
        schema = replace(schema, kept="dense", k=0, storage="float32", mix="none", ordered=True)
        logits = np.broadcast_to(np.zeros((), np.float32), (schema.rows, len(schema.classes)))
        return cls(schema, samples.indices.numpy(), pixel_hashes(samples), [{"logits": logits}])

    def rows(self, indices: Tensor, views: Tensor) -> Tensor:
        """The rows of samples in some of their views, int64 [B].

        Args:
            indices: int64 [B], stable indices of the samples, which :meth:`check` has seen.
            views: int64 [B], numbers of views, below ``schema.views``.
        """
        return views * self.schema.samples + torch.from_numpy(self._place[indices.numpy()])

    def index_of(self, rows: Tensor) -> Tensor:
        """The index of the sample that each row, int64 [B], is about."""
        return torch.from_numpy(self._indices[rows.numpy() % self.schema.samples])

    def has(self, rows: Tensor) -> Tensor:
        """Which rows, int64 [B], have a label: bool [B]."""
        inside = (rows >= 0) & (rows < self.schema.rows)
        if self._at is None:
            return inside & (rows < int(self._starts[-1]))
        return inside & torch.from_numpy(self._at[torch.where(inside, rows, 0).numpy()] >= 0)

    def read(self, rows: Tensor) -> Rows:
        """The labels of rows, int64 [B], which must be there."""
        at = rows.numpy() if self._at is None else self._at[rows.numpy()]
        found = self._take(at)
        logits = self.schema.codec.decode(found, self.tail)
        if self.schema.mix == "none":
            return Rows(logits, rows, torch.ones(len(rows)), torch.zeros(len(rows), 4, dtype=torch.int64))
        partner, share, box = (torch.from_numpy(found[name]) for name in ("partner", "share", "box"))
        return Rows(logits, partner[:, 0], share[:, 0], box.long())

    def knows(self, samples: Samples) -> NDArray[np.bool_]:
        """Which samples, by their indices, were labelled: bool [number of samples]."""
        indices = samples.indices.numpy()
        known = indices < len(self._place)
        known[known] = self._place[indices[known]] >= 0
        return known

    def check(self, samples: Samples) -> None:
        """That these are the samples that were labelled, or some of them, in their order or another.

        Raises:
            LimbeckError: other classes, a sample that was not labelled, or one whose image has changed.
        """
        if self.schema.classes != samples.classes:
            raise LimbeckError(
                f"{self.name} holds labels of the classes {list(self.schema.classes)}, the samples have "
                f"{list(samples.classes)}"
            )
        indices, known = samples.indices.numpy(), self.knows(samples)
        if not known.all():
            raise LimbeckError(
                f"{self.name} holds no label of {int((~known).sum())} of the {len(indices)} samples, the first of them "
                f"with index {int(indices[~known][0])}: it was made from other data (another source, split or seed)"
            )
        every = torch.arange(len(samples))
        if not samples.in_memory:
            every = torch.linspace(0, len(samples) - 1, min(CHECKED, len(samples))).long()
        wrong = pixel_hashes(samples, every) != self._pixels[self._place[indices[every.numpy()]]]
        if wrong.any():
            raise LimbeckError(
                f"{self.name}: the image with index {int(indices[every.numpy()][wrong][0])} is not the one that was "
                f"labelled ({int(wrong.sum())} of {len(every)} differ): it was made from other data, or files changed"
            )

    def check_like(self, other: "LabelStore") -> None:
        """That this store is of the same views of the same samples as another, in the same order.

        Raises:
            LimbeckError: naming what differs.
        """
        names = ("classes", "samples", "view", "flip", "views", "seed")
        differing = [name for name in names if getattr(self.schema, name) != getattr(other.schema, name)]
        if not differing and not (
            np.array_equal(self._indices, other._indices) and np.array_equal(self._pixels, other._pixels)
        ):
            differing = ["images"]
        if differing:
            raise LimbeckError(
                f"{self.name} and {other.name} differ in {', '.join(differing)}; stores that teach together hold "
                "labels of the same views: label with the same data, views and seed"
            )

    def _take(self, at: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The columns at some places of all files together."""
        names = [name for name in self.schema.columns if name != "row"]
        if len(self._parts) == 1:
            return {name: self._parts[0][name][at] for name in names}
        columns = self.schema.columns
        found = {name: np.empty((len(at), columns[name][1]), columns[name][0]) for name in names}
        owner = np.searchsorted(self._starts, at, side="right") - 1
        for number in np.unique(owner):
            mine = np.flatnonzero(owner == number)
            for name in names:
                found[name][mine] = self._parts[number][name][at[mine] - self._starts[number]]
        return found


def pixel_hashes(samples: Samples, positions: Tensor | None = None) -> NDArray[np.uint64]:
    """A hash of each image at ``positions``, int64 [B], or of all: uint64 [B]."""
    at = torch.arange(len(samples)) if positions is None else positions
    found = [
        hashlib.blake2b(memoryview(image), digest_size=8).digest()
        for part in at.split(1024)
        for image in samples.fetch(part)["image"].contiguous().flatten(1).numpy()
    ]
    return np.frombuffer(b"".join(found), dtype=np.uint64)


def read_manifest(folder: Path) -> tuple[Schema, dict[str, Any]]:
    """The schema of a store, and what else ``store.json`` says: planned rows, and the files with their hashes.

    Raises:
        LimbeckError: there is none, or one of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise LimbeckError(f"{folder} holds no {MANIFEST}: not a store of labels, or its labelling was interrupted")
    content = json.loads(path.read_text(encoding="utf-8"))
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise LimbeckError(f"{path} has format_version {version!r}; this limbeck reads {FORMAT_VERSION}")
    try:
        schema = Schema(**{**content["schema"], "classes": tuple(content["schema"]["classes"])})
        return schema, {key: content[key] for key in ("planned", "seconds", "samples", "files")}
    except (KeyError, TypeError) as error:
        raise LimbeckError(f"{path} is not the description of a store: {error}") from None


def sha256(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
