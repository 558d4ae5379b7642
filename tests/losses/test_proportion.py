import numpy as np
import pytest
import torch

from limbeck.losses.divergence import cross_entropy
from limbeck.losses.proportion import proportion_cross_entropy


def expected(logits, proportions):
    z = logits.astype(np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return -(proportions * np.log(p.mean(-2))).sum(-1)


def test_against_the_definition():
    rng = np.random.default_rng(0)
    logits, proportions = rng.normal(size=(5, 7, 3)) * 3, rng.dirichlet(np.ones(3), size=5)
    given = torch.from_numpy(logits), torch.from_numpy(proportions)
    np.testing.assert_allclose(
        proportion_cross_entropy(*given, reduction="none"), expected(logits, proportions), rtol=1e-12
    )
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    mean = (weight.numpy() * expected(logits, proportions)).sum() / 4.5
    assert float(proportion_cross_entropy(*given, weight=weight)) == pytest.approx(mean, rel=1e-12)


def test_bags_of_one_are_plain_cross_entropy():
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    proportions = torch.eye(4, dtype=torch.float64)[labels]
    assert float(proportion_cross_entropy(logits[:, None], proportions)) == pytest.approx(
        float(cross_entropy(logits, labels)), rel=1e-12
    )


def test_who_is_positive_does_not_matter():
    """One sure positive of four, whichever: the loss is the entropy of the proportions, its least value."""
    proportions = torch.tensor([[0.75, 0.25]])
    for place in range(4):
        logits = torch.tensor([[[50.0, -50.0]] * 4])
        logits[0, place] = torch.tensor([-50.0, 50.0])
        entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
        assert float(proportion_cross_entropy(logits, proportions)) == pytest.approx(entropy, abs=1e-6)


def test_extreme_logits():
    logits = torch.tensor([[[1e4, -1e4], [1e4, -1e4]]])
    assert float(proportion_cross_entropy(logits, torch.tensor([[1.0, 0.0]]))) == 0
    wrong = proportion_cross_entropy(logits, torch.tensor([[0.5, 0.5]]))
    assert float(wrong) == pytest.approx(1e4)
    assert proportion_cross_entropy(logits.bfloat16(), torch.tensor([[0.5, 0.5]])).dtype == torch.float32


def test_gradient():
    logits = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    proportions = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.75, 0.25]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: proportion_cross_entropy(z, proportions), (logits,))
