import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.errors import LimbeckError
from limbeck.labels.vote import confidence_vote


@given(arrays(np.float64, (2, 3, 4), elements=st.floats(0.01, 1)))
def test_one_voter_after_the_other(values):
    p = values / values.sum(-1, keepdims=True)
    expected = np.zeros((3, 4))
    for m in range(2):
        for i in range(3):
            k = 1 + sum(x * math.log(x) for x in p[m, i]) / math.log(4)
            expected[i] += k * p[m, i] / 2
    np.testing.assert_allclose(confidence_vote(torch.tensor(p)).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_limits():
    uniform, one, other = torch.full((4,), 0.25), torch.eye(4)[1], torch.eye(4)[2]
    assert confidence_vote(torch.stack([uniform, uniform])[:, None]).abs().max() < 1e-6
    assert torch.equal(confidence_vote(torch.stack([uniform, one])[:, None])[0].round(decimals=6), one / 2)
    assert torch.equal(confidence_vote(torch.stack([one, one])[:, None])[0], one)
    assert torch.equal(confidence_vote(torch.stack([one, other])[:, None])[0], (one + other) / 2)


def test_one_class_is_refused():
    with pytest.raises(LimbeckError, match="at least 2 classes, and there is 1"):
        confidence_vote(torch.ones(2, 3, 1))
