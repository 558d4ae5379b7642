"""K-means."""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError


class Clusters(NamedTuple):
    """What :func:`k_means` found.

    Attributes:
        centres: [K, D].
        labels: int64 [N], the cluster of each sample.
    """

    centres: Tensor
    labels: Tensor

    def predict(self, features: Float[Tensor, "samples features"]) -> Int[Tensor, " samples"]:
        """The nearest centre of other samples, int64 [M]."""
        return torch.cdist(features.to(self.centres), self.centres).argmin(-1)


def k_means(features: Float[Tensor, "samples features"], clusters: int, seed: int, starts: int = 10) -> Clusters:
    """Lloyd's algorithm from several k-means++ starts, the best one kept (scikit-learn).

    Args:
        features: [N, D], finite.
        clusters: K, at most N.
        seed: of the first centres.
        starts: how often it is started.

    Raises:
        LimbeckError: more clusters than samples, or none.
    """
    if not 1 <= clusters <= len(features):
        raise LimbeckError(f"clusters is {clusters}; it must lie between 1 and the {len(features)} samples")
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Fewer different samples than clusters: every one of them is its own centre then.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(clusters, n_init=starts, random_state=seed % 2**32).fit(features.double().cpu().numpy())
    centres = torch.from_numpy(found.cluster_centers_).to(features)
    return Clusters(centres, torch.from_numpy(found.labels_).to(features.device, torch.int64))
