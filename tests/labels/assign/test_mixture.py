"""K-means, and Gaussian mixtures by batch and online EM."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from limbeck.errors import LimbeckError
from limbeck.labels.assign.k_means import k_means
from limbeck.labels.assign.mixture import (
    Mixture,
    Statistics,
    fit_mixture,
    log_densities,
    log_likelihood,
    maximise,
    online_step,
    responsibilities,
    statistics,
)
from limbeck.labels.types import one_hot


def blobs(count=120, dtype=torch.float64, offset=0.0):
    generator = np.random.default_rng(0)
    means = np.array([[0.0, 0.0], [3.0, 0.5], [0.0, 4.0]])
    labels = generator.choice(3, count, p=[0.6, 0.3, 0.1])
    spread = np.array([[0.5, 0.3], [0.3, 0.6], [0.8, 0.4]])
    points = means[labels] + generator.normal(size=(count, 2)) * spread[labels] + offset
    return torch.from_numpy(points).to(dtype), torch.from_numpy(labels)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_densities_are_those_of_scipy(covariance):
    points, _ = blobs(20)
    covariances = torch.tensor([[[0.5, 0.1], [0.1, 0.3]], [[1.0, -0.4], [-0.4, 2.0]]], dtype=torch.float64)
    weights, means = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([[0.0, 1.0], [2.0, 0.0]]).double()
    if covariance == "diagonal":
        covariances = covariances.diagonal(dim1=1, dim2=2).diag_embed()
    given = covariances if covariance == "full" else covariances.diagonal(dim1=1, dim2=2)
    mixture = Mixture(weights, means, given)
    expected = np.stack(
        [
            np.log(weights[k].item())
            + multivariate_normal(means[k].numpy(), covariances[k].numpy()).logpdf(points.numpy())
            for k in range(2)
        ],
        axis=1,
    )
    np.testing.assert_allclose(log_densities(mixture, points), expected, rtol=1e-10)
    total = np.logaddexp(*expected.T)
    np.testing.assert_allclose(responsibilities(mixture, points), np.exp(expected - total[:, None]), rtol=1e-9)
    assert float(log_likelihood(mixture, points)) == pytest.approx(total.mean(), rel=1e-10)


@pytest.mark.parametrize(("covariance", "theirs"), [("diagonal", "diag"), ("full", "full")])
def test_batch_em_is_that_of_scikit_learn(covariance, theirs):
    points, labels = blobs()
    start = one_hot(labels, 3, torch.float64) * 0.8 + 0.2 / 3
    first = maximise(statistics(points, start, covariance))
    precisions = 1 / first.covariances if covariance == "diagonal" else torch.linalg.inv(first.covariances)
    model = GaussianMixture(
        3,
        covariance_type=theirs,
        tol=1e-10,
        max_iter=500,
        weights_init=first.weights.numpy(),
        means_init=first.means.numpy(),
        precisions_init=precisions.numpy(),
    ).fit(points.numpy())
    found = fit_mixture(points, start, covariance, tolerance=1e-12, max_steps=500)
    for ours, its in zip(found, (model.weights_, model.means_, model.covariances_), strict=True):
        np.testing.assert_allclose(ours, its, rtol=1e-3, atol=1e-4)  # both stop a little before the optimum
    assert float(log_likelihood(found, points)) == pytest.approx(model.score(points.numpy()), abs=1e-8)


def test_likelihood_never_falls():
    points, _ = blobs()
    shares = torch.rand(len(points), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    values = []
    mixture = maximise(statistics(points, shares), floor=0.0)
    for _ in range(20):
        values.append(float(log_likelihood(mixture, points)))
        mixture = maximise(statistics(points, responsibilities(mixture, points)), floor=0.0)
    assert np.diff(values).min() > -1e-12
    assert values[-1] > values[0] + 0.1


def test_float32_far_from_the_origin():
    near, labels = blobs()
    far, _ = blobs(dtype=torch.float32, offset=1000.0)
    start = one_hot(labels, 3, torch.float64)
    expected = fit_mixture(near, start)
    found = fit_mixture(far, start.float())
    # At 1000 float32 keeps 6e-5.
    torch.testing.assert_close(found.means.double() - 1000, expected.means, atol=5e-4, rtol=0)
    torch.testing.assert_close(found.covariances.double(), expected.covariances, atol=2e-3, rtol=1e-2)


def test_online_step():
    points, labels = blobs()
    past = statistics(points[:60], one_hot(labels[:60], 3, torch.float64))
    mixed, mixture = online_step(past, points[60:], 0.25)
    fresh = statistics(points[60:], responsibilities(maximise(past), points[60:]))
    for got, old, new in zip(mixed, past, fresh, strict=True):
        torch.testing.assert_close(got, 0.75 * old + 0.25 * new)
    torch.testing.assert_close(mixture.means, mixed.sums / mixed.counts[:, None])
    # Rate 1 on all samples is a step of batch EM.
    _, step = online_step(past, points, 1.0)
    expected = maximise(statistics(points, responsibilities(maximise(past), points)))
    for got, wanted in zip(step, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_online_em_finds_the_mixture():
    points, labels = blobs(3000)
    state = statistics(points[:30], one_hot(labels[:30], 3, torch.float64) * 0.5 + 0.5 / 3)
    for number, part in enumerate(points.split(50)):
        state, mixture = online_step(state, part, (number + 2) ** -0.6)
    batch = fit_mixture(points, one_hot(labels, 3, torch.float64))
    assert float(log_likelihood(mixture, points)) > float(log_likelihood(batch, points)) - 0.02


def test_wrong_mixtures_are_refused():
    points, labels = blobs(20)
    with pytest.raises(LimbeckError, match="no sample belongs to component 3"):
        maximise(statistics(points, one_hot(labels, 4, torch.float64)))
    with pytest.raises(LimbeckError, match="no samples"):
        statistics(points[:0], torch.zeros(0, 2, dtype=torch.float64))
    zero = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(LimbeckError, match="rate is 0"):
        online_step(Statistics(zero + 1, zero[:, None], zero[:, None]), points[:, :1], 0.0)


def test_k_means_finds_separate_blobs():
    points, labels = blobs()
    found = k_means(points * 1.0 + labels[:, None] * 20, 3, seed=0)
    assert len({(a, b) for a, b in zip(found.labels.tolist(), labels.tolist(), strict=True)}) == 3
    torch.testing.assert_close(found.predict(points + labels[:, None] * 20), found.labels)
    for number in range(3):
        torch.testing.assert_close(
            found.centres[number], (points + labels[:, None] * 20)[found.labels == number].mean(0)
        )
    same = k_means(torch.zeros(4, 2), 3, seed=1)
    assert same.centres.dtype == torch.float32
    for wrong in (0, 121):
        with pytest.raises(LimbeckError, match=f"clusters is {wrong}"):
            k_means(points, wrong, seed=0)
