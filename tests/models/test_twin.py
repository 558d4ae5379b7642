import pytest
import torch
from torch import nn

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.models import Classifier, build
from limbeck.models.twin import twin


def test_same_network_with_first_weights_of_its_own(digits: ImageData) -> None:
    model = build("cnn", digits.task, width=3, norm="group")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert isinstance(model, Classifier)
    other = twin(model)
    assert {name: value.shape for name, value in other.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert (other.factory, other.arguments, other.classes) == (model.factory, model.arguments, model.classes)
    assert (other.mean, other.std, other.size) == (model.mean, model.std, model.size)
    assert repr(other) == repr(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    drawn = [name for name, value in other.named_parameters() if not torch.equal(value, before[name])]
    # All but the scales and shifts of the normalisations.
    assert len(drawn) == 6


def test_drawn_from_the_global_generator(digits: ImageData) -> None:
    model = build("cnn", digits.task, width=3)
    assert isinstance(model, Classifier)
    made = []
    for seed in (5, 5, 6):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made.append(twin(model).get_parameter("body.0.0.weight"))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_module_of_your_own_is_refused() -> None:
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), ("a", "b"), channels=1, size=2)
    with pytest.raises(LimbeckError, match="a twin of Sequential cannot be made"):
        twin(model)
