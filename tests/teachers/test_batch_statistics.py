import copy

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import Classifier, ImageTask, build
from limbeck.teachers import BatchStatistics, Ensemble, Frozen, prior_weights

CLASSES = ("ant", "bee", "cat")
IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(dropout: float = 0.0) -> Classifier:
    """With running statistics that are not those of the images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build("cnn", ImageTask(CLASSES, 1, (8, 8), (0.3,), (0.5,)), width=4, dropout=dropout)
        assert isinstance(model, Classifier)
        model.train()
        for _ in range(3):
            model(torch.rand(16, 1, 8, 8) ** 2)
    return model.eval()


def moved(model: Classifier, scale: torch.Tensor, shift: torch.Tensor) -> Classifier:
    """The output of the first convolution mapped channel by channel."""
    changed = copy.deepcopy(model)
    first = next(module for module in changed.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        first.weight.mul_(scale[:, None, None, None])
        first.bias = nn.Parameter(shift)
    return changed


def test_invariant_to_the_scale_of_the_first_convolution() -> None:
    model = network().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-14  # the one thing that is not scaled
    scale, shift = torch.tensor([0.5, 2.0, 3.0, 1.5]), torch.tensor([1.0, -1.0, 0.5, 0.0])
    changed = moved(model, scale, shift.double())
    with torch.no_grad():
        own, other = (BatchStatistics(copy.deepcopy(m))(IMAGES).logits for m in (model, changed))
        # eps beside variances of about 0.1, and float64 rounding.
        torch.testing.assert_close(own, other, atol=1e-11, rtol=0)
        assert (model(IMAGES).logits - changed(IMAGES).logits).abs().max() > 0.01


def test_equals_the_network_in_training_mode_and_leaves_it_as_it_was() -> None:
    model = network()
    twin = copy.deepcopy(model).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = BatchStatistics(model)
    output = teacher({"image": IMAGES})
    with torch.no_grad():
        assert torch.equal(output.logits, twin(IMAGES).logits)
        assert torch.equal(output.features, twin(IMAGES).features)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert not output.logits.requires_grad


def test_parts_have_statistics_of_their_own() -> None:
    model = network()
    halves = BatchStatistics(model, parts=2)(IMAGES).logits
    alone = BatchStatistics(model)
    assert torch.equal(halves, torch.cat([alone(IMAGES[:4]).logits, alone(IMAGES[4:]).logits]))
    assert not torch.equal(halves, alone(IMAGES).logits)


def test_dropout_stays_off() -> None:
    teacher = BatchStatistics(network(dropout=0.5))
    assert torch.equal(teacher(IMAGES).logits, teacher(IMAGES).logits)


def test_classes_are_matched_by_name_and_members_may_be_such_teachers() -> None:
    model = network()
    plain = BatchStatistics(model)(IMAGES).logits
    turned = BatchStatistics(model, classes=("cat", "ant", "bee"))(IMAGES).logits
    assert torch.equal(turned, plain[:, [2, 0, 1]])
    ensemble = Ensemble([BatchStatistics(model, parts=2), model], weights=[3.0, 1.0], average="logits")
    expected = 0.75 * BatchStatistics(model, parts=2)(IMAGES).logits + 0.25 * Frozen(model)(IMAGES).logits
    torch.testing.assert_close(ensemble(IMAGES).logits, expected)
    assert not ensemble.state_dict()


@pytest.mark.parametrize(("count", "parts"), [(7, 2), (2, 2), (1, 1)])
def test_parts_that_say_nothing_are_refused(count: int, parts: int) -> None:
    with pytest.raises(LimbeckError, match=f"{count} images cannot be labelled with the statistics of {parts} equal"):
        BatchStatistics(network(), parts=parts)(IMAGES[:count])
    with pytest.raises(LimbeckError, match="parts is 0"):
        BatchStatistics(network(), parts=0)


def test_prior_weights() -> None:
    assert prior_weights([64, 60.6], 5) == pytest.approx([0.6637, 0.3363], abs=5e-5)
    assert prior_weights([40, 40, 40, 40], 5) == [0.25] * 4
    assert prior_weights([12.0], 5) == [1.0]
    # Differences that overflow exp: the best gets everything.
    assert prior_weights([1e4, -1e4, 1e4], 1) == [0.5, 0.0, 0.5]
    weights = prior_weights([63, 65.3, 68.5, 67.6, 67.4], 10)
    assert sum(weights) == pytest.approx(1)
    assert prior_weights([163, 165.3, 168.5, 167.6, 167.4], 10) == pytest.approx(weights)
    for priors, temperature, message in (([], 1, "priors"), ([float("nan")], 1, "priors"), ([1.0], 0, "temperature")):
        with pytest.raises(LimbeckError, match=message):
            prior_weights(priors, temperature)
