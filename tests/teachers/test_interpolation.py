import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from limbeck.errors import LimbeckError
from limbeck.teachers.interpolation import AdaptiveInterpolation

LOSSES = (2.0, 1.9, 1.8, 1.9)


def drive(schedule, losses, total):
    states = []
    for loss in losses:
        schedule.update(torch.tensor(loss), total)
        states.append((schedule.t.item(), schedule.momentum.item()))
    return states


def test_worked_schedule():
    schedule = AdaptiveInterpolation(0.4, 1.0, 5e-4, 0.99)
    states = drive(schedule, LOSSES, 1000)
    # float32 keeps 7 digits: the momentum's last step subtracts numbers of 1e-3.
    assert [m for _, m in states] == pytest.approx([0, 5.0e-4, 1.0213158e-3, 4.5554708e-4], rel=1e-5)
    # Here the linear floor is ahead.
    assert [t for t, _ in states] == pytest.approx([0.4, 0.4006, 0.4012, 0.4018], abs=1e-7)


def test_worked_schedule_of_a_long_training():
    schedule = AdaptiveInterpolation(0.4, 1.0, 5e-4, 0.99)
    drive(schedule, LOSSES[:2], 10**6)
    # A unit in the last place of float32 at 0.4 is 3e-8.
    assert schedule.t.item() == pytest.approx(0.4001500375, abs=3.1e-8)
    drive(schedule, LOSSES[2:3], 10**6)
    step = 5e-4 / (1 + math.exp(-1.0213158e-3)) * (1 - 0.4001500375)
    assert schedule.t.item() == pytest.approx(0.4001500375 + step, abs=6.2e-8)


def reference(losses, total, t_start, t_end, alpha, beta):
    """In Python's floats, update by update."""
    t, previous, momentum = t_start, None, 0.0
    for step, loss in enumerate(losses):
        if previous is not None:
            momentum = beta * momentum + (1 - beta) * (previous - loss) / (previous + 1e-15)
            moved = t + alpha * float(expit(momentum)) * (1 - t)
            t = min(t_end, max(t_start + (t_end - t_start) * step / total, moved))
        previous = loss
        yield t


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.01, 20), min_size=1, max_size=30),
    st.floats(0, 0.9),
    st.floats(0, 0.5),
    st.sampled_from([0.0, 0.5, 0.99]),
)
def test_against_the_definition_and_never_backwards(losses, t_start, alpha, beta):
    schedule = AdaptiveInterpolation(t_start, 0.95, alpha, beta)
    found = [t for t, _ in drive(schedule, losses, 40)]
    # float32 state against float64, up to 30 steps; improvements of up to -2,000 in the sigmoid.
    assert found == pytest.approx(list(reference(losses, 40, t_start, 0.95, alpha, beta)), abs=3e-5)
    assert found == sorted(found)
    assert max(found) <= 0.95 + 1e-7


def test_linear_and_the_end():
    linear = AdaptiveInterpolation(0.2, 1.0, 0.5, 0.9, adaptive=False)
    assert [t for t, _ in drive(linear, [2.0] * 5, 4)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [t for t, _ in drive(linear, [2.0] * 2, 4)] == [1.0, 1.0]


def test_stands_still_in_eval_mode():
    schedule = AdaptiveInterpolation(alpha=0.5)
    drive(schedule, [2.0, 1.0], 10)
    before = {name: value.clone() for name, value in schedule.state_dict().items()}
    drive(schedule.eval(), [0.1, 0.01], 10)
    assert all(torch.equal(value, before[name]) for name, value in schedule.state_dict().items())
    drive(schedule.train(), [0.1], 10)
    assert schedule.t > before["t"]


def test_state_survives_half_precision_saving_and_needs_no_gradient():
    schedule = AdaptiveInterpolation(alpha=0.5).to(torch.bfloat16)
    loss = torch.tensor(2.0, requires_grad=True)
    schedule.update(loss, 10)
    schedule.update(loss * 0.5, 10)
    assert schedule.t.dtype == torch.float32
    assert not schedule.t.requires_grad
    twin = AdaptiveInterpolation(alpha=0.5)
    twin.load_state_dict(schedule.state_dict())
    assert drive(twin, [0.7], 10) == drive(schedule, [0.7], 10)
    assert not list(schedule.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_start": -0.1}, "t_start is -0.1"),
        ({"t_start": 0.9, "t_end": 0.5}, "t_end 0.5"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"beta": 1.0}, "beta is 1"),
    ],
)
def test_refuses_what_cannot_be(options, message):
    with pytest.raises(LimbeckError, match=message):
        AdaptiveInterpolation(**options)
