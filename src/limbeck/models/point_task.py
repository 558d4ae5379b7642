"""What a model of points is built for."""

from dataclasses import dataclass

from limbeck.errors import LimbeckError


@dataclass(frozen=True)
class PointTask:
    """Points of a space, without classes.

    Attributes:
        dimensions: numbers a point.

    Raises:
        LimbeckError: no dimensions.
    """

    dimensions: int

    def __post_init__(self) -> None:
        if self.dimensions < 1:
            raise LimbeckError(f"points have {self.dimensions} dimensions; they need at least 1")
