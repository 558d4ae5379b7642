import math

import pytest
import torch

from limbeck.losses.curriculum_temperature import CurriculumTemperature


def test_value_and_reversed_gradient_over_the_curriculum():
    """T = 1 + 20 sigmoid(x) whatever the progress; its gradient is times -(1 - cos(pi n / N)) / 2."""
    learned = CurriculumTemperature()
    with torch.no_grad():
        learned.x.fill_(0.3)
    s = 1 / (1 + math.exp(-0.3))
    for n in range(6):
        learned.x.grad = None
        temperature = learned(4)
        temperature.backward()
        strength = (1 - math.cos(math.pi * min(n / 4, 1))) / 2
        # float32 throughout, numbers around 10.
        assert temperature.item() == pytest.approx(1 + 20 * s, rel=1e-6)
        assert learned.x.grad.item() == pytest.approx(-strength * 20 * s * (1 - s), rel=1e-5, abs=1e-7)
        learned.count()


def test_is_saved_and_restored():
    one, other = CurriculumTemperature(), CurriculumTemperature()
    one.count()
    other.load_state_dict(one.state_dict())
    assert int(other.updates) == 1
