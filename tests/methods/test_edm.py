import copy
import math
from pathlib import Path

import pytest
import torch

from limbeck.data.points import PointData, points
from limbeck.errors import LimbeckError
from limbeck.methods.diffusion.edm import EDM
from limbeck.models import build
from limbeck.models.classifier import ImageTask
from limbeck.models.denoiser import Denoised, Denoiser
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Plan
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context
from tests.methods.tables import value


def small() -> PointData:
    return points(0, train_size=1000, validation=300, test_size=300)


def denoiser(seed: int = 0, **arguments: object) -> Denoiser:
    torch.manual_seed(seed)
    model = build("mlp_denoiser", small().task, **{"hidden": 16, **arguments})
    assert isinstance(model, Denoiser)
    return model


class Recorder(Denoiser):
    """Answers with a constant error, and keeps what it was asked."""

    error = 0.25

    def forward(self, batch):  # type: ignore[no-untyped-def]
        self.seen.append(batch)
        return Denoised(self.clean + self.error, torch.zeros(len(self.clean), 1))


def recorder(model: Denoiser, clean: torch.Tensor) -> Recorder:
    model.__class__ = Recorder
    model.__dict__.update(seen=[], clean=clean)
    assert isinstance(model, Recorder)
    return model


@pytest.mark.parametrize("parameterisation", ["edm", "epsilon"])
def test_loss_of_a_constant_error_and_the_noise_it_saw(parameterisation: str) -> None:
    clean = torch.randn(20_000, 2)
    model = recorder(denoiser(parameterisation=parameterisation), clean)
    terms = EDM(model).terms({"point": clean, "index": torch.arange(len(clean))})
    (batch,) = model.seen
    sigma = batch["sigma"]
    weight = sigma.double() ** -2 + (4 if parameterisation == "edm" else 0)
    assert list(terms) == ["denoising"]
    assert float(value(terms["denoising"])) == pytest.approx(float((weight * 0.25**2).mean()), rel=1e-4)
    noise = (batch["noisy"] - clean) / sigma[:, None]
    # Means and spreads of 20,000 and 40,000 normal numbers: 4 standard errors.
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    if parameterisation == "edm":
        assert float(sigma.log().mean()) == pytest.approx(-1.2, abs=0.035)
        assert float(sigma.log().std()) == pytest.approx(1.2, abs=0.03)
    else:
        step = torch.bucketize(sigma, model.sigmas)
        assert (int(step.min()), int(step.max())) == (0, 999)
        assert float(step.double().mean()) == pytest.approx(499.5, abs=9)


def test_average_is_that_of_the_paper() -> None:
    """Half-life min(H, ramp n) in samples, recomputed by hand."""
    student = denoiser()
    objective = EDM(student, ema_halflife=12, ema_rampup=0.5)
    objective.begin(Plan(num_samples=100, num_classes=0, updates=5, epochs=1))
    name = "body.answer.bias"
    expected = student.state_dict()[name].clone()
    for number in range(1, 6):
        with torch.no_grad():
            student.body.answer.bias.fill_(float(number))  # type: ignore[union-attr]
        objective.finish({"index": torch.arange(8)})
        keep = 0.5 ** (8 / min(12, 0.5 * 8 * number))
        expected = keep * expected + (1 - keep) * number
        torch.testing.assert_close(objective.trained().state_dict()[name], expected)
    assert math.isclose(objective.average.decay, 0.5 ** (8 / 12))


def test_hides_classes_from_a_conditional_model() -> None:
    pytest.importorskip("diffusers")
    task = ImageTask(("a", "b"), 1, (4, 4), (0.0,), (1.0,))
    arguments = {"width": 8, "multipliers": [1], "conditional": True}
    images, label = torch.rand(2000, 1, 4, 4), torch.arange(2000) % 2
    batch = {"image": images, "label": label, "index": torch.arange(2000)}
    for share in (0.0, 0.3):
        built = build("unet_denoiser", task, **arguments)
        assert isinstance(built, Denoiser)
        model = recorder(built, 2 * images - 1)
        EDM(model, label_dropout=share).terms(batch)
        told = model.seen[0]["label"]
        hidden = told == -1
        assert float(hidden.float().mean()) == pytest.approx(share, abs=0.04)
        assert torch.equal(told[~hidden], label[~hidden])


def test_learns_resumes_and_keeps_the_average(tmp_path: Path) -> None:
    data = small()
    how = FitSettings(
        updates=300, batch_size=100, evaluations=1, accelerator="cpu", optimizer={"name": "adam", "lr": 3e-3}
    )
    before = copy.deepcopy(denoiser(hidden=64))
    objective = EDM(denoiser(hidden=64))
    fit = Fit("fit", objective, data, how)
    fit.run(tmp_path / "fit", Context(tmp_path, "edm", seed=0))
    kept = fit.load(tmp_path / "fit")
    torch.manual_seed(0)
    batch = {"point": data.test.points, "index": data.test.indices}
    losses = []
    for model in (before, kept):
        torch.manual_seed(1)
        assert isinstance(model, Denoiser)
        losses.append(value(EDM(model).terms(batch)["denoising"]).item())
    # The skip connection alone has 1; the best denoiser of these points has about 0.75.
    assert losses[0] == pytest.approx(1, abs=0.1)
    assert losses[1] < 0.92
    assert kept is objective.trained()
    assert not torch.equal(kept.body.answer.weight, objective.student.body.answer.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"P_std": 0.0}, "P_std is 0"),
        ({"ema_halflife": 0}, "ema_halflife is 0"),
        ({"label_dropout": 1.5}, "label_dropout is 1.5"),
        ({"label_dropout": 0.1}, "student is told none"),
    ],
)
def test_refusals(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        EDM(denoiser(), **arguments)
