"""The graph of nearest neighbours: which samples are alike, and how much."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError, nearest

Kernel = Literal["matern", "rbf"]

PAIRS = 1 << 24
"""Cosines in memory at a time."""


def neighbour_edges(
    features: Float[Tensor, "samples features"],
    k: int,
    max_distance: float | int = 2.0,
    seekers: Bool[Tensor, " samples"] | None = None,
) -> Int[Tensor, "edges 2"]:
    """Every sample and its k nearest others by cosine distance (1 - cosine), as undirected edges, each once.

    Args:
        features: [N, D]; a sample whose features are all 0 is at distance 1 from every other.
        k: neighbours a sample, 1 <= k < N.
        max_distance: neighbours at this distance or farther have no edge; cosine distances lie in [0, 2].
        seekers: [N], the samples whose neighbours are looked for; all where not given. Any sample can be found.

    Returns:
        int64 [E, 2] in lexicographic order, the smaller position first.

    Raises:
        LimbeckError: k out of range, or features that are not finite.
    """
    count = len(features)
    if not 1 <= k < count:
        raise LimbeckError(f"k is {k}; each of {count} samples has 1 to {count - 1} neighbours")
    if not features.isfinite().all():
        raise LimbeckError(f"the features of sample {int((~features.isfinite()).nonzero()[0, 0])} are not finite")
    directions = F.normalize(features, dim=-1)
    rows = torch.arange(count, device=features.device)
    if seekers is not None:
        rows = rows[seekers]
    pairs = [rows.new_zeros(0, 2)]
    for part in rows.split(max(1, PAIRS // count)):
        cosines = directions[part] @ directions.T
        cosines[torch.arange(len(part), device=part.device), part] = -torch.inf
        best, found = cosines.topk(k, dim=-1)
        found_pairs = torch.stack([part[:, None].expand_as(found), found], dim=-1)
        pairs.append(found_pairs[1 - best < max_distance])
    return torch.cat(pairs).sort(dim=-1).values.unique(dim=0)


def kernel(
    features: Float[Tensor, "samples features"], edges: Int[Tensor, "edges 2"], name: Kernel = "matern"
) -> Float[Tensor, " edges"]:
    """``exp(-d)`` (Matern with nu = 1/2) or ``exp(-d^2 / 2)`` (RBF), d the Euclidean distance; length scale 1.

    Args:
        features: [N, D].
        edges: [E, 2], pairs of positions.
        name: matern or rbf.

    Raises:
        LimbeckError: another name.
    """
    if name not in ("matern", "rbf"):
        raise LimbeckError(f"kernel is {name!r}; it must be matern or rbf.{nearest(name, ('matern', 'rbf'))}")
    parts = edges.split(max(1, PAIRS // max(1, features.shape[1])))
    found = [(features[part[:, 0]] - features[part[:, 1]]).norm(dim=-1) for part in parts]
    distances = torch.cat(found) if found else features.new_zeros(0)
    return (-distances).exp() if name == "matern" else (-distances.square() / 2).exp()
