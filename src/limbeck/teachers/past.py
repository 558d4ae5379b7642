"""The model's own earlier predictions as teacher."""

from collections.abc import Callable
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.precision import keep_dtype
from limbeck.teachers.gather import gather_batch

DTYPES = {"float32": torch.float32, "float16": torch.float16}


class PastPredictions(nn.Module):
    """A table of the last prediction for each sample, as of PS-KD (arXiv:2006.12000, section 3).

    The table is part of ``state_dict``. With several processes each must write at the same time, with as many
    samples; every process then holds the whole table.

    Args:
        num_samples: N, rows of the table: the size of the data set from which indices are counted.
        num_classes: C, columns of the table.
        dtype: Storage; "float16" takes half the memory (2 N C bytes) and keeps 11 bits of each probability,
            values below 3e-8 become 0.

    Raises:
        LimbeckError: no rows, no columns, or an unknown dtype.
    """

    synchronised: ClassVar[bool] = False
    """Writing keeps processes equal: data-parallel training must not broadcast the table at every step."""

    table: Tensor
    seen: Tensor

    def __init__(self, num_samples: int, num_classes: int, dtype: Literal["float32", "float16"] = "float32") -> None:
        super().__init__()
        if num_samples < 1 or num_classes < 1:
            raise LimbeckError(f"a table of {num_samples} samples and {num_classes} classes holds nothing")
        if dtype not in DTYPES:
            raise LimbeckError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
        self.register_buffer("table", torch.zeros(num_samples, num_classes, dtype=DTYPES[dtype]))
        self.register_buffer("seen", torch.zeros(num_samples, dtype=torch.bool))

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """What was last written for some samples.

        Args:
            index: Samples, int64 ``[B]``, each in [0, N).

        Returns:
            Probabilities, float32 ``[B, C]`` (zeros where nothing was written), and bool ``[B]``: whether
            something was.

        Raises:
            LimbeckError: an index out of range. (On a GPU, where looking would wait for it: a device
                assertion.)
        """
        self._check(index)
        return self.table.index_select(0, index).float(), self.seen.index_select(0, index)

    @torch.no_grad()
    def write(self, index: Tensor, probabilities: Tensor) -> None:
        """Remember predictions; of a sample that occurs twice the last one. O(B log B), whatever N.

        Args:
            index: Samples, int64 ``[B]``, each in [0, N). With several processes: this process's slice
                ``[rank::world]`` of the global batch.
            probabilities: float ``[B, C]``.

        Raises:
            LimbeckError: an index out of range, or probabilities of another shape than ``[B, C]``.
        """
        places = self._check(index)
        expected = [len(index), self.table.shape[1]]
        if list(probabilities.shape) != expected:
            raise LimbeckError(f"probabilities must be {expected}, got {list(probabilities.shape)}")
        probabilities = probabilities.detach().to(self.table.dtype)
        index, probabilities = gather_batch(index), gather_batch(probabilities)
        # One process on a CPU looks whether samples occur twice: that is cheaper than the sort.
        if len(set(places)) < len(index):
            probabilities = probabilities.index_select(0, _last_occurrence(index))
        self.table.index_copy_(0, index, probabilities)
        self.seen.index_fill_(0, index, True)

    def _check(self, index: Tensor) -> list[int]:
        """Refuse what is no index; its numbers as Python's, none where reading them would wait for a GPU."""
        rows = len(self.seen)
        if index.dtype != torch.int64 or index.ndim != 1:
            raise LimbeckError(f"index must be int64 [B], got {index.dtype} {list(index.shape)}")
        if index.device.type != "cpu":
            inside = (index >= 0) & (index < rows)
            torch._assert_async(inside.all(), f"index outside the {rows} samples of the table")
            return []
        # The numbers of a batch as Python's: one call in the place of five small operations.
        places = index.tolist()
        if places and (min(places) < 0 or max(places) >= rows):
            raise LimbeckError(
                f"index {next(at for at in places if not 0 <= at < rows)} is outside the table of past predictions, "
                f"which has {rows} samples: make it as long as the data set from which indices are counted"
            )
        return places

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_dtype(function), recurse)


def _last_occurrence(index: Tensor) -> Tensor:
    """For each entry the position of the last entry that is equal to it: writes in any order then agree."""
    ordered, position = torch.sort(index, stable=True)
    return position[torch.searchsorted(ordered, index, right=True) - 1]
