"""Known transformations of an image, all of them at once: what self-supervision asks a model to tell apart.

Unlike the views of :mod:`limbeck.data.views` nothing about them is random. Each is a turn by a multiple of 90 degrees
(counter-clockwise) followed by a permutation of the channels; the first is always the identity. Names and orders are
those of the released code of SLA (arXiv 1910.05872).
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, nearest


class Transformation(NamedTuple):
    """One of them.

    Attributes:
        turns: quarter turns, counter-clockwise.
        channels: which channel of the image becomes red, green and blue.
    """

    turns: int
    channels: tuple[int, int, int]


_RGB, _RBG, _GRB, _GBR, _BRG, _BGR = (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)
_CYCLES = (_RGB, _GBR, _BRG)
_PERMUTATIONS = (_RGB, _RBG, _GRB, _GBR, _BRG, _BGR)


def _all(turns: Sequence[int], channels: Sequence[tuple[int, int, int]]) -> tuple[Transformation, ...]:
    return tuple(Transformation(*pair) for pair in product(turns, channels))


TRANSFORMATIONS: dict[str, tuple[Transformation, ...]] = {
    "none": _all((0,), (_RGB,)),
    "rotation": _all((0, 1, 2, 3), (_RGB,)),
    "rotation2": _all((0, 2), (_RGB,)),
    "color_perm": _all((0,), _PERMUTATIONS),
    "color_perm3": _all((0,), _CYCLES),
    "rot_color_perm6": _all((0, 2), _CYCLES),
    "rot_color_perm12": _all((0, 1, 2, 3), _CYCLES),
    "rot_color_perm24": _all((0, 1, 2, 3), _PERMUTATIONS),
}
"""Name -> the transformations, in the order of their labels."""


def transformations(name: str, shape: Sequence[int] | None = None) -> tuple[Transformation, ...]:
    """The transformations of a name.

    Args:
        name: of :data:`TRANSFORMATIONS`.
        shape: channels, height and width of the images they are meant for.

    Raises:
        LimbeckError: no such name; quarter turns of images that are not square, whose turned views would have another
            shape; or permutations of the channels of grey images.
    """
    if name not in TRANSFORMATIONS:
        known = ", ".join(TRANSFORMATIONS)
        raise LimbeckError(f"there are no transformations {name!r}.{nearest(name, TRANSFORMATIONS)} Known: {known}")
    found = TRANSFORMATIONS[name]
    if shape is not None:
        channels, height, width = shape
        if height != width and any(each.turns % 2 for each in found):
            raise LimbeckError(
                f"transformation {name!r} turns images by 90 degrees, and these are {height}x{width}: take rotation2 "
                "(0 and 180 degrees) or square images"
            )
        if channels != 3 and any(each.channels != _RGB for each in found):
            raise LimbeckError(
                f"transformation {name!r} permutes red, green and blue, and these images have {channels} channel: "
                "take rotation"
            )
    return found


def transform(images: Tensor, name: str) -> Tensor:
    """All transformations of every image, interleaved: row ``b M + j`` is image b under transformation j.

    Args:
        images: [B, C, H, W].
        name: of :data:`TRANSFORMATIONS`, M of them.

    Returns:
        [B M, C, H, W].

    Raises:
        LimbeckError: as of :func:`transformations`.
    """
    views = []
    for turns, channels in transformations(name, images.shape[1:]):
        view = images if channels == _RGB else images[:, list(channels)]
        views.append(view if turns == 0 else torch.rot90(view, turns, (-2, -1)))
    return torch.stack(views, dim=1).flatten(0, 1)
