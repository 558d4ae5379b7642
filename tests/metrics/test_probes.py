import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from limbeck.errors import LimbeckError
from limbeck.metrics.probes import CHUNK, knn_accuracy, knn_predictions, standardisation


def embeddings(samples, dims=4, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=samples)
    # Dimensions of very different spread, which standardisation makes equal.
    features = (generator.normal(size=(samples, dims)) + labels[:, None]) * np.array([1, 100, 1e-3, 5])[:dims]
    return torch.tensor(features), torch.tensor(labels)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), k=st.sampled_from([1, 2, 5, 20, 60]))
def test_against_scikit_learn(seed, k):
    (train, labels), (test, answers) = embeddings(60, seed=seed), embeddings(30, seed=seed + 1000)
    scaler = StandardScaler().fit(train.numpy())
    peer = KNeighborsClassifier(k, algorithm="brute").fit(scaler.transform(train.numpy()), labels.numpy())
    expected = peer.predict(scaler.transform(test.numpy()))
    assert knn_predictions(train, labels, test, k).tolist() == expected.tolist()
    assert knn_accuracy(train, labels, test, answers, k) == pytest.approx((expected == answers.numpy()).mean())


def test_standardisation_against_numpy_and_constant_dimensions():
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e4, 1e-4]) + 7
    # Of a spread 1e-4 around 7 float32 keeps three digits, exactly these are measured.
    mean, std = standardisation(features)
    np.testing.assert_allclose(mean, features.double().numpy().mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, features.double().numpy().std(0), rtol=1e-6)
    features[:, 1] = 0.1
    assert standardisation(features)[1][1] == 1.0
    assert standardisation(torch.zeros(1, 2))[1].tolist() == [1.0, 1.0]


def test_scale_and_shift_of_a_dimension_change_nothing():
    (train, labels), (test, _) = embeddings(80), embeddings(40, seed=1)
    scale, shift = torch.tensor([3.0, 0.01, 1e4, 1.0]), torch.tensor([5.0, 0.0, -2.0, 1e3])
    moved = knn_predictions(train * scale + shift, labels, test * scale + shift, 5)
    assert torch.equal(moved, knn_predictions(train, labels, test, 5))


def test_ties_few_samples_and_many_queries():
    train, labels = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([2, 1, 1, 2])
    assert knn_predictions(train, labels, torch.tensor([[1.5]]), 20).tolist() == [1]
    assert knn_predictions(train, labels, torch.tensor([[-9.0], [1.4]]), 1).tolist() == [2, 1]
    queries = torch.rand(CHUNK + 3, 1)
    whole = knn_predictions(train, labels, queries, 1)
    assert torch.equal(whole[CHUNK:], knn_predictions(train, labels, queries[CHUNK:], 1))
    assert len(knn_predictions(train, labels, queries[:0])) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, y: knn_predictions(f, y, f, 0), "k is 0"),
        (lambda f, y: knn_predictions(f, y - 1, f), "2 training embeddings have no label"),
        (lambda f, y: knn_predictions(f * torch.inf, y, f), "NaN or infinite"),
        (lambda f, y: knn_predictions(f[:0], y[:0], f), "there are no embeddings"),
        (lambda f, y: knn_accuracy(f, y, f[:0], y[:0]), "no queries"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))
