"""Samples that must not be learnt from, because they are all but the same as one that is held out."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError

PAIRS = 1 << 24
"""Cosines in memory at a time."""


def near_duplicates(
    descriptors: Float[Tensor, "samples features"],
    held_out: Float[Tensor, "others features"],
    similarity: float | int,
) -> Bool[Tensor, " samples"]:
    """Which samples have a descriptor whose cosine with one of ``held_out`` is at least ``similarity``.

    Any descriptor goes: pixels, features of a network. (SSLD, arXiv 2103.05959, matches SIFT key points.) A descriptor
    of zeros is like no other. The marked samples are taken out of use by ``labels.weighted(~marks)``.

    Args:
        descriptors: of the samples, [N, D].
        held_out: of what is held out, [M, D].
        similarity: in [-1, 1].

    Raises:
        LimbeckError: a similarity out of range, or NaN.
    """
    if not -1 <= similarity <= 1:
        raise LimbeckError(f"similarity is {similarity}, must be a cosine, between -1 and 1")
    others = F.normalize(held_out, dim=-1).T
    parts = F.normalize(descriptors, dim=-1).split(max(PAIRS // max(len(held_out), 1), 1))
    # Rounding may take the cosine of a sample with itself below 1.
    return torch.cat([(part @ others >= similarity - 1e-6).any(dim=-1) for part in parts])
