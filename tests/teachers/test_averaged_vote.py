import numpy as np
import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.labels.vote import confidence_vote
from limbeck.teachers.averaged_vote import AveragedVote
from tests.methods.tables import softmax


def test_each_sample_has_an_average_of_its_own():
    vote = AveragedVote(5, 3, temperature=0.5, decay=0.9, past_weight=0.3)
    logits = torch.randn(4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    visits = [[0, 3], [3, 1], [0, 3], [4, 0]]
    average: dict[int, np.ndarray] = {}
    for z, index in zip(logits, visits, strict=True):
        p = softmax(z.numpy() / 0.5)
        expected = confidence_vote(torch.tensor(p)).numpy()
        for row, sample in enumerate(index):
            if sample in average:
                expected[row] = 0.7 * expected[row] + 0.3 * average[sample]
        said = vote(z, torch.tensor(index))
        np.testing.assert_allclose(said.numpy(), expected, rtol=1e-5, atol=1e-6)  # the table is float32
        assert torch.equal(said, vote(z, torch.tensor(index)))  # asking remembers nothing
        vote.update(z, torch.tensor(index))
        for row, sample in enumerate(index):
            mean = p.mean(0)[row]
            average[sample] = 0.9 * average[sample] + 0.1 * mean if sample in average else mean


def test_refuses_what_cannot_be():
    for wrong in ({"temperature": 0.0}, {"decay": 1.1}, {"past_weight": -0.1}):
        with pytest.raises(LimbeckError, match="must be above 0, the others in"):
            AveragedVote(3, 2, **wrong)
