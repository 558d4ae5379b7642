import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.losses.one_versus_rest import one_versus_rest


@given(arrays(np.float64, (2, 4), elements=st.floats(-20, 20)), st.integers(0, 3), st.integers(0, 3))
def test_one_class_after_the_other(z, one, other):
    expected = [
        sum(math.log1p(math.exp(-z[i, c] if c == label else z[i, c])) for c in range(4))
        for i, label in enumerate((one, other))
    ]
    found = one_versus_rest(torch.tensor(z), torch.tensor([one, other]), reduction="none")
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    weight = torch.tensor([0.0, 2.0], dtype=torch.float64)
    weighed = one_versus_rest(torch.tensor(z), torch.tensor([one, other]), weight=weight)
    assert weighed.item() == pytest.approx(expected[1], rel=1e-9, abs=1e-12)


def test_zero_logits():
    assert one_versus_rest(torch.zeros(6, 5), torch.zeros(6, dtype=torch.int64)).item() == pytest.approx(
        5 * math.log(2), rel=1e-6
    )


def test_gradient_and_extremes():
    labels = torch.tensor([0, 2])
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: one_versus_rest(z, labels), logits)
    assert one_versus_rest(torch.tensor([[-1e4, 1e4]], dtype=torch.bfloat16), torch.tensor([0])).isfinite()
