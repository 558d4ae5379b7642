"""Columns of numbers as Arrow files: written once, read by memory map without a copy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import LimbeckError


def write_columns(path: Path, columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write columns [rows, width] as one batch of an Arrow stream; a row is a list of ``width`` numbers.

    Args:
        path: the file.
        columns: by name.
        metadata: of the file's schema.
    """
    import pyarrow as pa  # not above: only stored labels need it

    arrays = {}
    for name, column in columns.items():
        flat = pa.array(np.ascontiguousarray(column).reshape(-1))
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, column.shape[1])
    table = pa.table(arrays).replace_schema_metadata(dict(metadata or {}))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch)


def read_columns(path: Path) -> dict[str, NDArray[Any]]:
    """Columns [rows, width] by name, views of the mapped file.

    Raises:
        LimbeckError: not such a file.
    """
    import pyarrow as pa  # not above: only stored labels need it

    try:
        (batch,) = pa.ipc.open_stream(pa.memory_map(str(path)))
        found = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            values = column.values.to_numpy(zero_copy_only=True)
            found[name] = values.reshape(len(batch), column.type.list_size)
    except (OSError, ValueError, AttributeError) as error:  # Arrow's own errors are ValueErrors
        raise LimbeckError(f"{path} cannot be read as columns of numbers ({error}); write it again") from None
    return found
