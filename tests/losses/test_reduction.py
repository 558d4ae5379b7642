import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from limbeck.errors import LimbeckError
from limbeck.losses import Mean, reduce

finite = st.floats(-1e3, 1e3)


@given(
    values=hnp.arrays("float64", st.integers(1, 12), elements=finite), cut=st.integers(0, 12), seed=st.integers(0, 9)
)
def test_mean_of_parts_is_the_mean_of_the_whole(values, cut, seed):
    values = torch.from_numpy(values)
    weight = torch.rand(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    parts = [Mean.of(values[:cut], weight[:cut]), Mean.of(values[cut:], weight[cut:])]
    whole = Mean(parts[0].total + parts[1].total, parts[0].count + parts[1].count).value
    expected = (values.numpy() * weight.numpy()).sum() / weight.numpy().sum()
    # Sums of up to 12 numbers up to 1e3: float64 rounding.
    assert whole.item() == pytest.approx(expected, abs=1e-9)
    assert reduce(values, weight).item() == pytest.approx(expected, abs=1e-9)


def test_reductions_by_hand():
    values, weight = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 0.0, 3.0])
    assert reduce(values).item() == 3.0
    assert reduce(values, weight).item() == 4.75
    assert reduce(values, weight > 0).item() == 3.5
    assert reduce(values, weight, "sum").item() == 19.0
    assert reduce(values, weight, "none").tolist() == [1.0, 0.0, 18.0]
    assert reduce(values, reduction="sum").item() == 9.0
    assert reduce(values, reduction="none").tolist() == values.tolist()


def test_mean_without_weight_counts_values_and_times_scales_the_total_only():
    mean = Mean.of(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).times(2)
    assert (mean.total.item(), mean.count, mean.value.item()) == (20.0, 4.0, 5.0)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.5])])
def test_a_detached_mean_is_the_same_without_gradient(weight):
    mean = Mean.of(torch.tensor([1.0, 3.0], requires_grad=True), weight)
    assert mean.value.requires_grad
    assert not mean.detach().value.requires_grad
    assert mean.detach().value == mean.value


def test_a_mean_over_no_values_is_zero_with_zero_gradient():
    values = torch.zeros(0, requires_grad=True)
    mean = Mean.of(values).value
    mean.backward()
    assert mean.item() == 0.0
    assert values.grad.shape == (0,)


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.zeros(3, dtype=torch.bool)])
def test_empty_selection_is_zero_with_zero_gradient(weight):
    values = torch.tensor([1.0, torch.inf, torch.nan], requires_grad=True)
    loss = reduce(values, weight)
    loss.backward()
    assert loss.item() == 0.0
    assert values.grad.tolist() == [0.0, 0.0, 0.0]


def test_no_values_at_all_is_zero():
    assert reduce(torch.zeros(0)).item() == 0.0
    assert Mean.of(torch.zeros(0)).value.item() == 0.0


def test_unused_infinity_does_not_spoil_the_rest_and_used_infinity_shows():
    values = torch.tensor([2.0, torch.inf, torch.nan])
    assert reduce(values, torch.tensor([1.0, 0.0, 0.0])).item() == 2.0
    assert reduce(values, torch.tensor([1.0, 1.0, 0.0])).item() == torch.inf


def test_a_weight_of_zero_still_gets_its_gradient():
    weight = torch.zeros(2, requires_grad=True)
    reduce(torch.tensor([3.0, -5.0]), weight, "sum").backward()
    assert weight.grad.tolist() == [3.0, -5.0]


def test_half_precision_is_summed_in_float32():
    # 4096 ones and a half: float16 stops counting at 2048.
    values = torch.full((4097,), 0.5, dtype=torch.float16)
    total = reduce(values, reduction="sum")
    assert total.dtype == torch.float32
    assert total.item() == 2048.5


def test_gradient():
    values = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(reduce, (values, weight))


def test_errors_name_what_is_wrong():
    # Without the run-time check of types, which would refuse these first.
    unchecked = inspect.unwrap(reduce)
    with pytest.raises(LimbeckError, match=r"'men'.* Did you mean 'mean'"):
        unchecked(torch.ones(2), None, "men")
    with pytest.raises(TypeError, match="weight"):
        reduce(torch.ones(2), torch.ones(3))
