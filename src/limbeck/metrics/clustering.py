"""How well clusters agree with classes; all but the divergence lie in [0, 1] (the adjusted Rand index from -0.5)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.types import Labels
from limbeck.losses.reduction import Mean
from limbeck.metrics.classification import mean_by_size

Assignments = Int[Tensor, " samples"]
Classes = Int[Tensor, " samples"]


def contingency(
    clusters: Assignments,
    labels: Classes,
    weight: Float[Tensor, " samples"] | None = None,
    shape: tuple[int, int] | None = None,
) -> Float[Tensor, "clusters classes"]:
    """Samples of each cluster and class, float64 [K, C].

    Args:
        clusters: [N], >= 0.
        labels: [N], >= 0.
        weight: what each sample counts; 1 where not given.
        shape: (K, C); where not given up to the largest that occurs.

    Raises:
        LimbeckError: no samples, not as many clusters as labels, or a number below 0.
    """
    if len(clusters) != len(labels) or not len(labels):
        raise LimbeckError(f"{len(clusters)} clusters and {len(labels)} labels: give one of each a sample, and some")
    if bool((clusters < 0).any()) or bool((labels < 0).any()):
        raise LimbeckError("clusters and labels must be >= 0: leave out what has none")
    shape = (int(clusters.max()) + 1, int(labels.max()) + 1) if shape is None else shape
    values = torch.ones(len(labels)) if weight is None else weight
    table = torch.zeros(shape, dtype=torch.float64, device=labels.device)
    return table.index_put_((clusters.long(), labels.long()), values.to(table), accumulate=True)


def match_clusters(table: Float[Tensor, "clusters classes"]) -> Int[Tensor, " clusters"]:
    """The class of each cluster in the one-to-one matching that makes most samples right (Hungarian); -1 for none.

    Args:
        table: [K, C], see :func:`contingency`.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table.cpu().numpy(), maximize=True)
    matched = torch.full((len(table),), -1)
    matched[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return matched.to(table.device)


def matched_precision(labels: Labels, hidden: Classes) -> Mean:
    """Weighted fraction of pseudo labels that are right, clusters matched to classes one to one on these samples.

    On few samples the matching flatters.

    Args:
        labels: clusters of any kind, [N]; the most probable one counts.
        hidden: the true classes [N], -1 where they are not known: left out.
    """
    known = hidden >= 0
    weight = labels.weights[known]
    if not len(weight):
        return Mean(labels.weights.new_zeros(()), labels.weights.new_zeros(()))
    table = contingency(labels.predicted()[known], hidden[known], weight)
    matched = match_clusters(table)
    right = table.gather(1, matched.clamp(min=0)[:, None])[:, 0][matched >= 0].sum()
    return Mean(right.to(weight.dtype), weight.sum())


def clustering_summary(
    clusters: Assignments, labels: Classes, train_counts: Int[Tensor, " classes"] | None = None
) -> dict[str, float]:
    """Every metric of a clustering under its usual name.

    Clusters are matched to classes one to one; a cluster without a class is wrong.

    Args:
        clusters: [N], >= 0.
        labels: [N], >= 0.
        train_counts: training samples of each class [C], for the accuracies of classes with many (> 100), medium (20 to
            100) and few (< 20).

    Returns:
        ``cluster_accuracy`` (of all samples), ``class_accuracy`` (mean over classes), ``f1`` (mean over classes),
        ``nmi`` (over the arithmetic mean of the entropies), ``ari``, ``size_kl`` (KL(cluster sizes || class sizes) in
        nats, of the clusters that have a class), and ``accuracy_many``, ``accuracy_medium``, ``accuracy_few``.

    Raises:
        LimbeckError: as of :func:`contingency`.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    table = contingency(clusters, labels)
    matched = match_clusters(table)
    found, classes = matched >= 0, table.shape[1]
    total, sizes = table.sum(0), table.sum(1)
    right, given = table.new_zeros(classes), table.new_zeros(classes)
    right[matched[found]] = table[found, matched[found]]
    given[matched[found]] = sizes[found]
    seen = total > 0
    recall = right[seen] / total[seen]
    shares = given / given.sum()
    numbers = (clusters.cpu().numpy(), labels.cpu().numpy())
    metrics = {
        "cluster_accuracy": float(right.sum() / total.sum()),
        "class_accuracy": float(recall.mean()),
        "f1": float((2 * right[seen] / (total[seen] + given[seen])).mean()),
        "nmi": float(normalized_mutual_info_score(*numbers[::-1])),
        "ari": float(adjusted_rand_score(*numbers[::-1])),
        "size_kl": float((torch.xlogy(shares, shares) - torch.xlogy(shares, total / total.sum())).sum()),
    }
    if train_counts is not None:
        groups = mean_by_size(right / total, train_counts[:classes])  # NaN for a class without samples
        metrics |= {f"accuracy_{name}": value for name, value in groups.items()}
    return metrics
