"""What a model of tables is built for."""

import math
from dataclasses import dataclass

from limbeck.errors import LimbeckError


@dataclass(frozen=True)
class TableTask:
    """Rows of numbers, to be classified.

    Attributes:
        classes: names of the classes, in the order of the logits.
        columns: names of the numbers of a row, in their order; categories come as columns of zeros and ones.
        mean: subtracted from each column.
        std: divides each column, > 0.

    Raises:
        LimbeckError: no classes or no columns, one named twice, or numbers that do not fit the columns.
    """

    classes: tuple[str, ...]
    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in (("classes", self.classes), ("columns", self.columns)):
            if not values or len({*values}) != len(values):
                raise LimbeckError(f"{name} must be different names, at least one; they are {list(values)}")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) != len(self.columns) or not all(map(math.isfinite, numbers)):
                raise LimbeckError(f"{name} must be one finite number a column ({len(self.columns)}), got {numbers!r}")
        if min(self.std) <= 0:
            raise LimbeckError(f"std must be positive, got {min(self.std)}")
