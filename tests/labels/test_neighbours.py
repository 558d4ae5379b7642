import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel
from sklearn.neighbors import NearestNeighbors

from limbeck.errors import LimbeckError
from limbeck.labels import neighbours
from limbeck.labels.neighbours import kernel, neighbour_edges


def expected_edges(features, k, max_distance=np.inf, seekers=None):
    """Pairs by scikit-learn, self excluded by its place."""
    distances, found = NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit(features).kneighbors(features)
    seekers = np.ones(len(features), bool) if seekers is None else seekers
    pairs = {
        (min(i, int(j)), max(i, int(j)))
        for i in np.flatnonzero(seekers).tolist()
        for j, d in zip(found[i], distances[i], strict=True)
        if i != j and d < max_distance
    }
    return sorted(pairs)


@pytest.mark.parametrize("pairs", [1 << 24, 200])
def test_against_scikit_learn(monkeypatch, pairs):
    monkeypatch.setattr(neighbours, "PAIRS", pairs)
    features = np.random.default_rng(0).normal(size=(60, 5))
    given = torch.from_numpy(features)
    edges = neighbour_edges(given, 4)
    assert [tuple(edge) for edge in edges.tolist()] == expected_edges(features, 4)
    assert [tuple(edge) for edge in neighbour_edges(given, 4, 0.1).tolist()] == expected_edges(features, 4, 0.1)
    seekers = np.arange(60) < 7
    found = neighbour_edges(given, 3, seekers=torch.from_numpy(seekers))
    assert [tuple(edge) for edge in found.tolist()] == expected_edges(features, 3, seekers=seekers)


def test_edges_are_undirected_and_never_loops():
    features = torch.ones(6, 3)  # all at distance 0 from each other
    edges = neighbour_edges(features, 2)
    assert (edges[:, 0] < edges[:, 1]).all()
    assert len(edges.unique(dim=0)) == len(edges)
    assert set(edges.flatten().tolist()) == set(range(6))


def test_nobody_seeks():
    assert neighbour_edges(torch.randn(5, 2), 2, seekers=torch.zeros(5, dtype=torch.bool)).shape == (0, 2)
    assert kernel(torch.randn(5, 2), torch.zeros(0, 2, dtype=torch.int64)).shape == (0,)


def test_kernels():
    features = torch.randn(8, 1, dtype=torch.float64)
    edges = torch.tensor([[0, 1], [2, 7], [3, 3]])
    pairs = (edges[:, 0].numpy(), edges[:, 1].numpy())
    # In one dimension the L1 distance of the Laplacian kernel is the Euclidean one.
    np.testing.assert_allclose(kernel(features, edges), laplacian_kernel(features, gamma=1.0)[pairs], rtol=1e-12)
    wide = torch.randn(8, 6, dtype=torch.float64)
    np.testing.assert_allclose(kernel(wide, edges, "rbf"), rbf_kernel(wide, gamma=0.5)[pairs], rtol=1e-10)
    np.testing.assert_allclose(
        kernel(wide, edges), np.exp(-np.linalg.norm(wide.numpy()[pairs[0]] - wide.numpy()[pairs[1]], axis=1))
    )


def test_refusals():
    with pytest.raises(LimbeckError, match="1 to 4 neighbours"):
        neighbour_edges(torch.randn(5, 2), 5)
    with pytest.raises(LimbeckError, match="sample 1 are not finite"):
        neighbour_edges(torch.tensor([[0.0], [torch.nan], [1.0]]), 1)
