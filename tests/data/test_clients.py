from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.clients import ClientData, dirichlet_partition
from limbeck.data.fingerprint import fingerprint
from limbeck.data.load import load
from limbeck.errors import LimbeckError


def clients(seed: int = 0, **options: Any) -> ClientData:
    data = load("clients", seed, **{"clients": 6, "alpha": 0.5, "labeled": 0.2, **options})
    assert isinstance(data, ClientData)
    return data


def test_every_sample_has_one_owner() -> None:
    data = clients()
    whole = load("digits", 0).train
    owned = torch.cat([part.indices for client in data.clients for part in client if part is not None])
    assert owned.sort().values.tolist() == whole.indices.sort().values.tolist()
    assert len(data.train) == sum(len(client.labeled) for client in data.clients)
    assert data.unlabeled is not None
    assert data.train.num_samples == data.unlabeled.num_samples == whole.num_samples


def test_share_of_labels() -> None:
    for client in clients(labeled=0.25).clients:
        assert client.unlabeled is not None
        size = len(client.labeled) + len(client.unlabeled)
        assert len(client.labeled) == max(1, round(0.25 * size))
        assert bool((client.unlabeled.labels == -1).all())
        assert client.unlabeled.hidden_labels is not None
        assert bool((client.unlabeled.hidden_labels >= 0).all())


def test_all_labelled() -> None:
    data = clients(labeled=1.0)
    assert data.unlabeled is None
    assert all(client.unlabeled is None for client in data.clients)


def test_small_alpha_means_few_classes() -> None:
    labels = np.repeat(np.arange(10), 400)

    def classes(alpha: float) -> float:
        owner = dirichlet_partition(labels, 10, 10, alpha, 10, 3)
        counts = np.stack([np.bincount(labels[owner == k], minlength=10) for k in range(10)])
        return float((counts > 0.05 * counts.sum(1, keepdims=True)).sum(1).mean())

    assert classes(0.1) < 4 < 8 < classes(10.0)


def test_infinite_alpha_shares_equally() -> None:
    labels = np.repeat(np.arange(4), 100)
    owner = dirichlet_partition(labels, 4, 5, np.inf, 1, 0)
    for k in range(5):
        assert np.bincount(labels[owner == k]).tolist() == [20, 20, 20, 20]


def test_shares_have_the_moments_of_the_dirichlet_distribution() -> None:
    labels = np.zeros(20_000, dtype=np.int64)
    owners = [dirichlet_partition(labels, 1, 4, 2.0, 1, seed) for seed in range(200)]
    shares = np.stack([np.bincount(owner, minlength=4) for owner in owners]) / len(labels)
    # Dir(2, 2, 2, 2): mean 1/4, variance (1/4)(3/4)/9; 800 shares, the error of their variance is about 6%.
    assert shares.mean() == pytest.approx(0.25)
    assert shares.var() == pytest.approx(0.1875 / 9, rel=0.2)


def test_a_function_of_the_seed() -> None:
    assert fingerprint(clients()) == fingerprint(clients())
    assert fingerprint(clients()) != fingerprint(clients(seed=1))
    # Only who holds what differs:
    assert fingerprint(clients(alpha=0.5)) != fingerprint(clients(alpha=0.6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "clients is 0"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be above 0"),
        ({"labeled": 0.0}, "labeled is 0.0; it must be above 0 and at most 1"),
        ({"clients": 200, "min_samples": 10}, "too few for 200 clients of 10 each"),
        ({"clients": 20, "alpha": 0.001}, "no partition of .* use fewer clients"),
        ({"dataset": {"labels_per_class": 5}}, "dataset names no source"),
        ({"dataset": {"name": "digits", "labels_per_class": 5}}, "already has unlabelled samples"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        clients(**options)
