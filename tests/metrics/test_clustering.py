"""Clusters against classes."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from limbeck.errors import LimbeckError
from limbeck.labels.types import Labels
from limbeck.metrics.clustering import clustering_summary, contingency, match_clusters, matched_precision


def random_labels(count=60, clusters=4, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    return (torch.from_numpy(generator.integers(n, size=count)) for n in (clusters, classes))


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_is_that_of_the_best_permutation(seed):
    clusters, labels = random_labels(seed=seed)
    best = max(
        float((torch.tensor(order)[clusters] == labels).double().mean()) for order in itertools.permutations(range(4))
    )
    found = clustering_summary(clusters, labels)
    assert found["cluster_accuracy"] == pytest.approx(best)
    assert found["nmi"] == pytest.approx(sk.normalized_mutual_info_score(labels, clusters))
    assert found["ari"] == pytest.approx(sk.adjusted_rand_score(labels, clusters))
    renamed = match_clusters(contingency(clusters, labels))[clusters]
    assert found["class_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, renamed))
    assert found["f1"] == pytest.approx(sk.f1_score(labels, renamed, average="macro"))
    shares = [np.bincount(part, minlength=4) / 60 for part in (renamed, labels)]
    assert found["size_kl"] == pytest.approx(float(np.sum(shares[0] * np.log(shares[0] / shares[1]))))


def test_a_perfect_clustering_under_other_names():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    found = clustering_summary(torch.tensor([2, 2, 2, 0, 0, 1]), labels)
    assert found == pytest.approx(
        {"cluster_accuracy": 1, "class_accuracy": 1, "f1": 1, "nmi": 1, "ari": 1, "size_kl": 0}, abs=1e-12
    )


def test_more_clusters_than_classes_and_fewer():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    many = clustering_summary(torch.tensor([0, 0, 3, 1, 1, 2]), labels)
    assert many["cluster_accuracy"] == pytest.approx(4 / 6)
    few = clustering_summary(torch.zeros(6, dtype=torch.int64), labels)
    assert few["cluster_accuracy"] == few["class_accuracy"] == 0.5
    assert few["size_kl"] == pytest.approx(math.log(2))
    assert few["nmi"] == few["ari"] == 0


def test_groups_of_classes():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    found = clustering_summary(torch.tensor([0, 0, 1, 0, 1, 1]), labels, torch.tensor([500, 50, 5]))
    matched = match_clusters(contingency(torch.tensor([0, 0, 1, 0, 1, 1]), labels)).tolist()
    assert matched == [0, 2]
    assert (found["accuracy_many"], found["accuracy_medium"], found["accuracy_few"]) == (1, 0, 1)


def test_precision_of_weighted_pseudo_labels():
    target = torch.eye(3)[torch.tensor([0, 0, 1, 1, 2])]
    labels = Labels(target, torch.tensor([1.0, 0.5, 1.0, 0.0, 0.25]))
    hidden = torch.tensor([1, 1, 0, 1, -1])
    found = matched_precision(labels, hidden)
    assert (float(found.total), float(found.count)) == (2.5, 2.5)
    hidden = torch.tensor([1, 0, 0, 0, -1])
    assert float(matched_precision(labels, hidden).value) == pytest.approx(2.0 / 2.5)
    nothing = matched_precision(labels, torch.full((5,), -1))
    assert float(nothing.count) == 0


def test_what_cannot_be_measured_is_refused():
    for clusters, labels in (([], []), ([0, -1], [0, 0]), ([0, 0], [0, -1])):
        with pytest.raises(LimbeckError, match=r"and some|must be >= 0"):
            clustering_summary(torch.tensor(clusters, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64))
