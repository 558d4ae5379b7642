import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy as reference

from limbeck.errors import LimbeckError
from limbeck.labels import top_k
from limbeck.losses.entropy_gap import entropy_gap_weights
from tests.methods.tables import Floats, softmax

FEW = settings(max_examples=30, deadline=None)
LOGITS = arrays(np.float64, (5, 4), elements=st.floats(-30, 30))


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def pair(student: torch.Tensor, teacher: torch.Tensor, **options: object) -> tuple[float, float]:
    weights = entropy_gap_weights(student, teacher, **options)  # type: ignore[arg-type]
    return weights.forward.item(), weights.reverse.item()


@FEW
@given(LOGITS, LOGITS, st.floats(1, 5), st.floats(0.5, 10))
def test_against_the_definition(s: Floats, t: Floats, delta: float, T: float) -> None:
    found = entropy_gap_weights(torch.tensor(s), torch.tensor(t), delta=delta, temperature=T)
    gaps = reference(softmax(t / T), axis=-1) - reference(softmax(s / T), axis=-1)
    for forward, reverse, gap in zip(found.forward.tolist(), found.reverse.tolist(), gaps, strict=True):
        if abs(gap) > 1e-13:  # a smaller one is the rounding of entropies up to 1.4
            assert (forward, reverse) == ((delta, 1) if gap > 0 else (1, delta))


def test_worked_example() -> None:
    """H = .80182 and 1.02965 nats."""
    sure, unsure = logs(0.7, 0.2, 0.1), logs(0.5, 0.3, 0.2)
    assert pair(unsure, sure) == (1, 2)
    assert pair(sure, unsure) == (2, 1)
    assert pair(unsure, sure, delta=3, direction="reversed") == (3, 1)
    assert pair(sure, unsure, delta=3, direction="reversed") == (1, 3)
    assert pair(sure, unsure, delta=1) == (1, 1)


def test_one_hot_teacher_sharpens() -> None:
    assert pair(logs(0.5, 0.3, 0.2), logs(1.0, 0.0, 0.0)) == (1, 2)
    assert pair(logs(0.0, 1.0, 0.0), logs(1.0, 0.0, 0.0)) == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_entropies_are_equal_in_any_order_of_the_classes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(5000, 7, generator=generator, dtype=dtype)
    for direction in ("balancing", "reversed"):
        found = entropy_gap_weights(teacher[:, [3, 0, 6, 1, 5, 2, 4]], teacher, direction=direction)
        assert all(bool((part == 1).all()) for part in found)


def test_a_small_gap_is_one() -> None:
    """Far below what rounding is held to be: one logit moved by 1e-4 in float32."""
    teacher = torch.tensor([[2.0, 0.0, 0.0]])
    sharper, broader = (torch.tensor([[2.0 + step, 0.0, 0.0]]) for step in (1e-4, -1e-4))
    assert pair(sharper, teacher) == (2, 1)
    assert pair(broader, teacher) == (1, 2)


def test_the_temperature_can_turn_the_gap() -> None:
    """Two classes in doubt against one leading a crowd: which is surer depends on T."""
    two, crowd = torch.tensor([[10.0, 10.0] + [-10.0] * 8]), torch.tensor([[5.0] + [0.0] * 9])
    at = {T: reference(softmax(two / T), axis=-1) - reference(softmax(crowd / T), axis=-1) for T in (1.0, 4.0)}
    assert at[1.0] > 0 > at[4.0]
    assert pair(crowd, two, temperature=1.0) == (2, 1)
    assert pair(crowd, two, temperature=4.0) == (1, 2)


def test_any_leading_dimensions_top_k_and_half_precision() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 2, 3, 6, generator=generator)
    whole = entropy_gap_weights(student, teacher)
    flat = entropy_gap_weights(student.reshape(6, 6), teacher.reshape(6, 6))
    assert torch.equal(whole.forward.reshape(6), flat.forward)
    assert torch.equal(whole.reverse.reshape(6), flat.reverse)
    every = entropy_gap_weights(student, top_k(teacher.softmax(-1), 6))
    assert torch.equal(every.forward, whole.forward)
    half = entropy_gap_weights(student.bfloat16(), teacher.bfloat16())
    assert half.forward.dtype == torch.float32


def test_extreme_logits() -> None:
    rows = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [0.0, -math.inf, 0.0]])
    # Entropies 0, log 3 and log 2.
    for (i, one), (j, other) in itertools.product(enumerate(rows), enumerate(rows)):
        order = {0: 0, 1: 2, 2: 1}
        expected = (1, 1) if i == j else (2, 1) if order[j] > order[i] else (1, 2)
        assert pair(one[None], other[None]) == expected


def test_weights_carry_no_gradient() -> None:
    student, teacher = torch.randn(2, 3, 4, requires_grad=True)
    weights = entropy_gap_weights(student, teacher)
    assert not weights.forward.requires_grad
    assert not weights.reverse.requires_grad


def test_refused() -> None:
    z = torch.zeros(1, 2)
    for delta in (0.5, math.nan):
        with pytest.raises(LimbeckError, match=f"delta is {delta}; it must be at least 1"):
            entropy_gap_weights(z, z, delta=delta)
    with pytest.raises(LimbeckError, match=r"direction is 'reverse', must be one of.*Did you mean 'reversed'"):
        entropy_gap_weights(z, z, direction="reverse")
