import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models import Classifier, ImageTask, build
from limbeck.teachers import Ensemble, Frozen
from limbeck.teachers.ensemble import power_weights

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


def test_both_means_of_one_pass() -> None:
    """(0.9, 0.1) and (0.5, 0.5): the mean softmax is (0.7, 0.3), the softmax of the mean logits (0.75, 0.25)."""
    pairs = [Classifier(Constant(*np.log(p).tolist()), ("ant", "bee")) for p in ((0.9, 0.1), (0.5, 0.5))]
    for average in ("probabilities", "logits"):
        output = Frozen(Ensemble(pairs, average=average), ("ant", "bee"))(IMAGES)  # type: ignore[arg-type]
        # float32 logarithms.
        np.testing.assert_allclose(output.log_probabilities.exp()[0], [0.7, 0.3], atol=1e-6)
        np.testing.assert_allclose(output.mean_logits.softmax(-1)[0], [0.75, 0.25], atol=1e-6)
        assert torch.equal(output.logits, output.mean_logits if average == "logits" else output.log_probabilities)


def test_power_weights_worked_example() -> None:
    scores = (0.2, 0.4, 0.8)
    assert power_weights(scores, 0) == pytest.approx([1 / 3] * 3, rel=1e-15)
    assert power_weights(scores, 1) == pytest.approx([1 / 7, 2 / 7, 4 / 7], rel=1e-15)
    # 1, 2^12 and 2^24 by their sum.
    assert power_weights(scores, 12) == pytest.approx([n / (1 + 2**12 + 2**24) for n in (1, 2**12, 2**24)], rel=1e-12)
    assert power_weights(scores, 12) == pytest.approx([5.9590e-8, 2.44081e-4, 0.99975586], rel=1e-5)
    assert power_weights(scores, float("inf")) == [0, 0, 1]


def test_power_weights_of_scores_below_zero() -> None:
    assert power_weights([-1.0, 2.0, 4.0], 1) == pytest.approx([0, 1 / 3, 2 / 3])
    assert power_weights([-1.0, 2.0, 4.0], 0) == pytest.approx([1 / 3] * 3)
    for p in (0, 1, 12):
        assert power_weights([-3.0, -1.0, 0.0, -2.0], p) == [0.25] * 4
    assert power_weights([-3.0, -1.0, -1.0], float("inf")) == [0, 1, 0]
    assert power_weights([-5.0], 12) == [1]


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_power_weights_do_not_depend_on_the_scale(scale: float) -> None:
    assert power_weights([scale, 0.5 * scale], 12) == pytest.approx([4096 / 4097, 1 / 4097], rel=1e-12)
    assert power_weights([scale, 0.5 * scale], 1e6) == [1, 0]


def test_power_weights_refuse_what_is_no_score() -> None:
    for p in (-1.0, float("nan")):
        with pytest.raises(LimbeckError, match=f"p is {p}"):
            power_weights([1.0], p)
    for scores in ([], [1.0, float("nan")], [float("inf")]):
        with pytest.raises(LimbeckError, match="scores must be finite"):
            power_weights(scores, 1)
