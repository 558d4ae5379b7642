import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import Classifier, ImageTask, build
from limbeck.teachers import Ensemble, Frozen

CLASSES = ("ant", "bee", "cat")
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def member(seed: int, classes: tuple[str, ...] = CLASSES) -> Classifier:
    torch.manual_seed(seed)
    return build("mlp", ImageTask(classes, 1, (8, 8), (0.3,), (0.05,)), hidden=8).eval()


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.get_buffer("logits").expand(len(images), -1)


@pytest.mark.parametrize("weights", [None, (1.0, 1.0, 1.0), (0.2, 3.0, 0.5), (0.0, 1.0, 2.0)])
def test_reference(weights: tuple[float, ...] | None) -> None:
    models = [member(seed) for seed in range(3)]
    logits = np.stack([model(IMAGES).logits.detach().double().numpy() for model in models])
    share = np.ones(3) if weights is None else np.array(weights)
    share = (share / share.sum())[:, None, None]
    output = Ensemble(models, weights)(IMAGES)
    # float32 against float64 for numbers below 10.
    np.testing.assert_allclose(output.logits, np.log((share * softmax(logits, -1)).sum(0)), atol=2e-6, rtol=0)
    np.testing.assert_allclose(output.logits.exp().sum(-1), 1, atol=1e-6, rtol=0)
    output = Ensemble(models, weights, average="logits")(IMAGES)
    np.testing.assert_allclose(output.logits, (share * logits).sum(0), atol=2e-6, rtol=0)
    assert output.features is None


def test_extreme_logits_stay_finite() -> None:
    models = [Classifier(Constant(*values), CLASSES) for values in ((1e4, 0, -1e4), (-1e4, 0, 1e4))]
    logits = Ensemble(models)(IMAGES).logits
    expected = np.logaddexp(log_softmax([1e4, 0, -1e4]), log_softmax([-1e4, 0, 1e4])) - np.log(2)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-6)
    assert torch.equal(Ensemble(models, average="logits")(IMAGES).logits, torch.zeros(6, 3))


def test_one_member_predicts_as_it_did() -> None:
    model = member(0)
    logits = model(IMAGES).logits.detach()
    # log_softmax twice is log_softmax up to rounding.
    assert torch.allclose(Ensemble([model])(IMAGES).logits, logits.log_softmax(-1), atol=1e-6)
    assert torch.equal(Ensemble([model], average="logits")(IMAGES).logits, logits)


def test_half_precision_members_are_averaged_in_float32() -> None:
    ensemble = Ensemble([member(0), member(1)]).bfloat16()
    logits = ensemble(IMAGES).logits
    assert logits.dtype == torch.float32
    assert torch.allclose(logits.exp().sum(-1), torch.ones(6), atol=1e-6)


def test_members_are_frozen_and_absent_from_the_state() -> None:
    ensemble = Ensemble([member(0), member(1)]).train()
    assert ensemble.state_dict() == {}
    ensemble.load_state_dict({}, strict=True)
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    assert not any(model.training for model in ensemble.members)
    assert not ensemble(IMAGES.clone().requires_grad_()).logits.requires_grad


def test_classes_are_matched_by_name() -> None:
    first, second = member(0), member(1, ("cat", "dog", "ant", "bee"))
    ensemble = Ensemble([first, second], average="logits")
    assert ensemble.classes == CLASSES
    matched = second(IMAGES).logits[:, [2, 3, 0]]
    assert torch.equal(ensemble(IMAGES).logits, 0.5 * first(IMAGES).logits + 0.5 * matched)
    student = Frozen(ensemble, ("bee", "ant"))
    assert torch.equal(student(IMAGES).logits, ensemble(IMAGES).logits[:, [1, 0]])
    with pytest.raises(LimbeckError, match=r"member 1 .* the classes \['dog'\]"):
        Ensemble([second, first])


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (0.0, 0.0), (float("nan"), 1.0)])
def test_wrong_weights(weights: tuple[float, ...]) -> None:
    with pytest.raises(LimbeckError, match="weights must be 2 numbers >= 0"):
        Ensemble([member(0), member(1)], weights)


def test_errors() -> None:
    with pytest.raises(LimbeckError, match="at least one model"):
        Ensemble([])
    with pytest.raises(LimbeckError, match="'probabilities' or 'logits', got 'votes'"):
        Ensemble([member(0)], average="votes")  # type: ignore[arg-type]
