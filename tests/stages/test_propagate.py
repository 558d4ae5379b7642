import json

import numpy as np
import pytest
import torch

from limbeck.data.bags import Bags
from limbeck.errors import LimbeckError
from limbeck.labels.neighbours import neighbour_edges
from limbeck.labels.propagate import Counts, count_pairs, join, propagate, smoothness
from limbeck.metrics.ranking import auc
from limbeck.stages.progress import Reporter
from limbeck.stages.propagate import Propagate, Propagation
from limbeck.stages.stage import Context

WEAK = {"lambda_s": 0.5, "lambda_b": 0.5, "k": 3}


def clusters(bag_size=4, count=40, seed=0):
    """Two clusters of opposite directions, one class each; every row in some random bag."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(count, generator=generator) % 2
    rows = (2.0 * labels[:, None] - 1) * torch.tensor([1.0, 0.2]) + 0.1 * torch.randn(count, 2, generator=generator)
    labels = labels.view(-1, bag_size)
    return Bags(rows.view(-1, bag_size, 2), labels.sum(1), ("no", "yes"), ("a", "b"), hidden_labels=labels)


def features(bags):
    return bags.rows.flatten(0, 1)


@pytest.mark.parametrize("counts", ["pairwise", "cardinality"])
def test_neighbours_tell_who_is_positive(counts):
    bags = clusters()
    hidden = bags.hidden_labels.flatten()
    found, edges = Propagation(**WEAK, counts=counts).solve(features(bags), bags)
    assert found.converged
    assert edges >= 40 * 3 / 2
    assert auc(found.log_odds, hidden) > 0.95
    assert ((found.probabilities >= 0.5) == hidden).double().mean() > 0.85
    # Counts alone rank bags, not rows.
    alone, _ = Propagation(lambda_s=0.0, lambda_b=0.5, k=3, counts=counts).solve(features(bags), bags)
    assert 0.5 < auc(alone.log_odds, hidden) < 0.9
    by_bag = alone.probabilities.view(-1, 4)
    assert torch.allclose(by_bag, by_bag[:, :1].expand_as(by_bag), atol=1e-6)


def test_only_rows_of_bags_with_few_positives_seek():
    bags = clusters(count=80)
    every = Propagation(**WEAK).solve(features(bags), bags)[1]
    some = Propagation(**WEAK, max_positives=1).solve(features(bags), bags)[1]
    none = Propagation(**WEAK, max_positives=-1).solve(features(bags), bags)[1]
    assert 0 == none < some < every


@pytest.mark.parametrize("counts", ["pairwise", "cardinality"])
def test_every_number_has_its_place(counts):
    bags = clusters(count=80)
    rows, nodes = features(bags), 80
    how = Propagation(0.4, 0.3, 4, 1e-4, "rbf", counts, 1, iterations=3, damping=0.2)
    seekers = torch.tensor([count <= 1 for count in bags.counts.tolist() for _ in range(4)])
    edges = neighbour_edges(rows, 4, 1e-4, seekers)
    assert 0 < len(edges) < len(neighbour_edges(rows, 4, 2.0, seekers)) < len(neighbour_edges(rows, 4))
    weights = (-(rows[edges[:, 0]] - rows[edges[:, 1]]).square().sum(1) / 2).exp()
    field, factors = smoothness(nodes, edges, weights, 0.4), Counts(bags.members, bags.counts, 0.3)
    if counts == "pairwise":
        field, factors = join(field, count_pairs(nodes, bags.members, bags.counts, 0.3)), None
    expected = propagate(field, factors, iterations=3, damping=0.2)
    found, number = how.solve(rows, bags)
    assert (number, found.iterations) == (len(edges), 3)
    torch.testing.assert_close(found.log_odds, expected.log_odds, rtol=1e-5, atol=1e-6)  # float32 distances


def test_stage(tmp_path):
    bags = clusters()
    stage = Propagate("propagate-1", features(bags), bags, Propagation(**WEAK))
    context = Context(tmp_path, "test", seed=0, reporter=Reporter(quiet=True))
    assert stage.untrained().probabilities.view(-1, 4)[:, 0].tolist() == (bags.counts / 4).tolist()
    assert stage.describe()["samples"] == 40
    stage.run(tmp_path, context)
    found = stage.load(tmp_path)
    direct, edges = stage.how.solve(features(bags), bags)
    np.testing.assert_array_equal(found.probabilities, direct.probabilities)
    assert found.metrics == {
        "iterations": direct.iterations,
        "change": direct.change,
        "converged": 1.0,
        "edges": edges,
        "auc": auc(direct.log_odds, bags.hidden_labels.flatten()),
    }
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["samples_seen"] == 40
    # Without the truth there is nothing to measure against.
    blind = Propagate("blind", features(bags), Bags(bags.rows, bags.counts, bags.classes, bags.columns), stage.how)
    blind.run(tmp_path / "blind", context)
    assert "auc" not in blind.load(tmp_path / "blind").metrics
    np.testing.assert_array_equal(blind.load(tmp_path / "blind").probabilities, direct.probabilities)


def test_identity_sees_features_counts_and_settings(tmp_path):
    bags, context = clusters(), Context(tmp_path, "test", seed=0)
    moved, counts = features(bags).clone(), bags.counts.clone()
    moved[3, 1] += 1e-3
    counts[0] = (counts[0] + 1) % 5
    other = Bags(bags.rows, counts, bags.classes, bags.columns)
    stages = [
        Propagate("a", features(bags), bags, Propagation(**WEAK)),
        Propagate("a", moved, bags, Propagation(**WEAK)),
        Propagate("a", features(bags), other, Propagation(**WEAK)),
        Propagate("a", features(bags), bags, Propagation(**WEAK, damping=0.4)),
    ]
    assert len({json.dumps(dict(stage.identity(context)), sort_keys=True) for stage in stages}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_s": -1.0}, "lambda_s is -1"),
        ({"lambda_b": float("inf")}, "lambda_b is inf"),
        ({"k": 0}, "k is 0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"damping": 1.0}, "damping is 1"),
        ({"counts": "dense"}, "pairwise or cardinality"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(LimbeckError, match=message):
        Propagation(**options)
