import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.labels.prototypes import move_prototypes, prototype_probabilities


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 9), beta=st.sampled_from([0.0, 0.3, 0.9, 1.0]), seed=st.integers(0, 99))
def test_equals_a_loop_over_the_vectors(batch, beta, seed):
    generator = torch.Generator().manual_seed(seed)
    mu = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    vectors = torch.randn(batch, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (batch,), generator=generator)
    expected = mu.numpy().copy()
    for vector, label in zip(vectors.numpy(), labels.tolist(), strict=True):
        expected[label] = beta * expected[label] + (1 - beta) * vector
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    # A dozen products in float64.
    np.testing.assert_allclose(move_prototypes(mu, vectors, labels, beta).numpy(), expected, atol=1e-13)


def test_the_first_vector_is_the_prototype_and_others_stay_zero():
    q = torch.nn.functional.normalize(torch.tensor([[3.0, 4.0]]))
    found = move_prototypes(torch.zeros(2, 2), q, torch.tensor([1]), 0.9)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


def test_probabilities():
    mu = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = prototype_probabilities(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), mu)
    wanted = np.exp([[1, 0], [0.6, 0.8]])
    np.testing.assert_allclose(found.numpy(), wanted / wanted.sum(1, keepdims=True), rtol=1e-6)
    assert prototype_probabilities(mu, torch.zeros(2, 2)).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_wrong_momentum():
    with pytest.raises(LimbeckError, match=r"momentum of prototypes is 1\.5; it must lie between 0 and 1"):
        move_prototypes(torch.zeros(2, 2), torch.ones(1, 2), torch.tensor([1]), 1.5)
