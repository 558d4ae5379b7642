import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy as reference

from limbeck.losses.entropy import entropy
from tests.methods.tables import Floats, softmax

LOGITS = arrays(np.float64, (4, 3), elements=st.floats(-30, 30))


@given(LOGITS)
def test_equals_the_entropy_of_the_softmax(z: Floats) -> None:
    found = entropy(torch.tensor(z), reduction="none")
    # float64; log q of up to 60.
    np.testing.assert_allclose(found.numpy(), reference(softmax(z), axis=-1), atol=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_uniform_logits_give_log_of_the_number_of_classes(classes: int) -> None:
    found = entropy(torch.full((2, classes), 7.0, dtype=torch.float64))
    assert found.item() == pytest.approx(math.log(classes), abs=1e-15)


def test_gradient() -> None:
    z = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(entropy, (z,))


def test_extreme_logits_and_excluded_classes() -> None:
    z = torch.tensor([[1e4, -1e4, 0.0], [0.0, float("-inf"), 0.0]], requires_grad=True)
    found = entropy(z, reduction="none")
    found.sum().backward()
    torch.testing.assert_close(found.detach(), torch.tensor([0.0, math.log(2)]))
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_half_precision_is_computed_in_full_and_unused_rows_do_not_count() -> None:
    z = torch.tensor([[1.0, 2.0], [float("nan"), 0.0]], dtype=torch.bfloat16)
    found = entropy(z, weight=torch.tensor([1.0, 0.0]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, entropy(torch.tensor([[1.0, 2.0]])))
