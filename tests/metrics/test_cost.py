import time

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.metrics import latency_ms, macs, parameters


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )


class Waits(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.calls, self.modes = seconds, 0, set()

    def forward(self, batch):
        self.calls += 1
        self.modes.add((self.training, torch.is_grad_enabled()))
        time.sleep(self.seconds)
        return batch


class TakesDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, batch):
        return self.body(batch["image"])


def test_parameters_by_hand_and_shared_ones_count_once():
    assert parameters(network()) == 3 * 9 * 8 + 8 + 16 + 8 * 36 * 5 + 5
    layer = nn.Linear(4, 4)
    layer.weight.requires_grad_(False)
    assert parameters(nn.Sequential(layer, layer)) == 20


@pytest.mark.parametrize("batch", [1, 4])
def test_macs_are_of_one_sample(batch):
    expected = 3 * 9 * 8 * 36 + 8 * 36 * 5
    images = torch.rand(batch, 3, 6, 6)
    assert macs(network(), images) == expected
    assert macs(TakesDict(), {"image": images}) == expected
    with pytest.raises(LimbeckError, match="at least one sample"):
        macs(network(), images[:0])


def test_measuring_leaves_the_model_as_it_was():
    model = network().train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.rand(2, 3, 6, 6)
    macs(model, images)
    latency_ms(model, images, repeats=1)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_latency():
    model = Waits(0.01)
    # Sleep is never shorter; the median of 5 is not the slowest.
    assert 10 <= latency_ms(model, torch.zeros(1), repeats=5) < 100
    assert model.calls == 8
    assert model.modes == {(False, False)}
    with pytest.raises(LimbeckError, match="repeats is 0"):
        latency_ms(model, torch.zeros(1), repeats=0)
