"""Writing a store of labels: file by file, so that nothing is lost or doubled when it is interrupted."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.arrow import read_columns, write_columns
from limbeck.data.codec import Columns
from limbeck.data.samples import Samples
from limbeck.data.store import (
    FORMAT_VERSION,
    MANIFEST,
    SAMPLES,
    LabelStore,
    Schema,
    pixel_hashes,
    read_manifest,
    sha256,
)
from limbeck.errors import LimbeckError
from limbeck.stages.files import write_atomically, write_json
from limbeck.stages.stage import versions


class StoreWriter:
    """Writes a store file by file, or goes on with one that was interrupted, or adds views to a finished one.

    Args:
        folder: where it is.
        schema: what the labels are about.
        samples: the samples that are labelled.
        planned: how many rows there will be.

    Raises:
        LimbeckError: the folder holds labels of something else.
    """

    def __init__(self, folder: Path, schema: Schema, samples: Samples, planned: int) -> None:
        self.folder, self.schema = folder, schema
        self._waiting: list[Columns] = []
        if (folder / MANIFEST).is_file():
            before, self._manifest = read_manifest(folder)
            _refuse_other(folder, before, schema)
            about = read_columns(folder / SAMPLES)
            LabelStore(schema, about["index"][:, 0], about["pixels"][:, 0], [], name=str(folder)).check(samples)
            if not np.array_equal(about["index"][:, 0], samples.indices.numpy()):
                raise LimbeckError(
                    f"{folder} holds labels of other samples, or in another order; choose another folder"
                )
        else:
            about = {"index": samples.indices.numpy()[:, None], "pixels": pixel_hashes(samples)[:, None]}
            self._manifest = {"samples": self._write(SAMPLES, about), "files": [], "seconds": 0.0}
        self._manifest["planned"] = planned

    @property
    def done(self) -> int:
        """Rows that are safe on the disk."""
        return sum(part["rows"] for part in self._manifest["files"])

    def add(self, columns: Columns) -> None:
        """Put rows, as :meth:`Schema.encode` gave them, behind those that are there; :meth:`flush` writes them."""
        self._waiting.append(columns)

    @property
    def seconds(self) -> float:
        """Time that was spent when the last file was written."""
        return float(self._manifest["seconds"])

    def flush(self, seconds: float = 0.0) -> None:
        """Write what was added into a file of its own, and enter it in ``store.json``.

        Args:
            seconds: time spent so far.
        """
        if self._waiting:
            columns = {key: np.concatenate([part[key] for part in self._waiting]) for key in self.schema.columns}
            entry = self._write(f"rows-{len(self._manifest['files']):05}.arrow", columns)
            self._manifest["files"].append(entry)
            self._waiting = []
        self._manifest["seconds"] = round(seconds, 3)
        content = {"format_version": FORMAT_VERSION, "schema": asdict(self.schema), "versions": versions()}
        write_json(self.folder / MANIFEST, content | self._manifest)

    def _write(self, name: str, columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """Write one file; returns its entry."""
        about = {"limbeck": json.dumps(asdict(self.schema))}
        write_atomically(self.folder / name, lambda part: write_columns(part, columns, about))
        rows = len(next(iter(columns.values())))
        return {"file": name, "rows": rows, "sha256": sha256(self.folder / name)}


def _refuse_other(folder: Path, before: Schema, schema: Schema) -> None:
    """Labels may be added of further views, of nothing else."""
    old, new = asdict(before), asdict(schema)
    changed = [key for key in old if old[key] != new[key] and not (key == "views" and new[key] > old[key])]
    if changed:
        what = ", ".join(f"{key} {old[key]!r} instead of {new[key]!r}" for key in changed)
        raise LimbeckError(f"{folder} holds other labels ({what}); choose another folder")
