"""Data: sources, splits, views and the endless streams of batches that training reads.

``from limbeck.data.load import load`` opens a source by its name; ``limbeck.data.from_datasets`` takes
datasets of your own.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.data.data import Data as Data
    from limbeck.data.data import Records as Records
    from limbeck.data.load import from_datasets as from_datasets
    from limbeck.data.samples import ImageData as ImageData
    from limbeck.data.samples import Samples as Samples
    from limbeck.data.samples import Source as Source
    from limbeck.data.samples import concat as concat
    from limbeck.data.splits import Split as Split
    from limbeck.data.stream import Stream as Stream
    from limbeck.data.stream import eval_batches as eval_batches
    from limbeck.data.user_sets import wrap as wrap

# Resolved on first use: `limbeck.data.index` must stay importable without torch. (The function `load` is not
# here, as its module has the same name.)
_HOMES = {
    "Data": "data",
    "ImageData": "samples",
    "Records": "data",
    "Samples": "samples",
    "Source": "samples",
    "Split": "splits",
    "Stream": "stream",
    "concat": "samples",
    "eval_batches": "stream",
    "from_datasets": "load",
    "wrap": "user_sets",
}
__all__ = [*sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'limbeck.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"limbeck.data.{_HOMES[name]}"), name)
