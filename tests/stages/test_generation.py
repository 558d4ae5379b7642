"""What is measured of generative models, and that measuring leaves no trace."""

import copy
import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from limbeck.data.points import PointData, points
from limbeck.data.samples import ImageData
from limbeck.metrics.generation import energy_distance
from limbeck.models import build
from limbeck.models.denoiser import Denoised, Denoiser
from limbeck.stages.evaluation.generation import FILE, generate, report, validate
from limbeck.teachers.frozen import Frozen

CPU = torch.device("cpu")


def small() -> PointData:
    return points(0, train_size=100, validation=400, test_size=500)


def denoiser(**arguments: object) -> Denoiser:
    torch.manual_seed(0)
    model = build("mlp_denoiser", small().task, **{"hidden": 8, "steps": 2, **arguments})
    assert isinstance(model, Denoiser)
    return model


class Exact(Denoiser):
    """The best denoiser of the ring."""

    def forward(self, batch):  # type: ignore[no-untyped-def]
        data, x, sigma = self.ring, batch["noisy"], batch["sigma"][:, None]
        weight = (-(torch.cdist(x, data.centres) ** 2) / (2 * (sigma**2 + 0.05**2))).softmax(1)
        means = (x[:, None] * 0.05**2 + data.centres * sigma[..., None] ** 2) / (sigma[..., None] ** 2 + 0.05**2)
        return Denoised((weight[..., None] * means).sum(1), x)


def exact(**arguments: object) -> Denoiser:
    model = denoiser(**{"steps": 18, **arguments})
    model.__class__ = Exact
    model.__dict__["ring"] = small()
    return model


def test_the_exact_model_is_right_with_many_calls_and_wrong_with_one(tmp_path: Path) -> None:
    data = points(0, train_size=100, validation=1000, test_size=2000)
    metrics = report(exact(), {}, data, tmp_path, CPU)
    # Two sets of 2,000 from one distribution: about the mean distance over their size.
    assert abs(metrics["energy_distance"]) < 0.003
    assert abs(metrics["validation/energy_distance"]) < 0.005
    assert metrics["sliced_wasserstein"] < 0.05
    assert metrics["modes"] == 8
    assert metrics["calls"] == 35
    # One call gives the mean of the data wherever the noise is.
    assert metrics["one_step/energy_distance"] > 0.3
    assert metrics["one_step/modes"] == 0
    assert next(iter(metrics)) == "energy_distance"


def test_report_measures_teachers_and_writes_samples(tmp_path: Path) -> None:
    data, student = small(), denoiser()
    student.set_sampler("few_step", 1)
    metrics = report(student, {"teacher": Frozen(exact())}, data, tmp_path, CPU)
    assert metrics["calls"] == 1
    assert not [name for name in metrics if name.startswith("one_step/")]
    assert metrics["teacher/calls"] == 35
    assert metrics["teacher/energy_distance"] < 0.01 < metrics["teacher/one_step/energy_distance"]
    shown = safetensors.torch.load_file(tmp_path / FILE)
    assert set(shown) == {"data", "student", "teacher", "teacher_one_step"}
    assert all(tensor.shape == (500, 2) for tensor in shown.values())
    assert torch.equal(shown["data"], data.test.points)
    own = energy_distance(generate(student, 500, CPU), data.test.points)
    assert metrics["energy_distance"] == own


def test_measuring_leaves_no_trace() -> None:
    model = denoiser(sampler="few_step", steps=3).train()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = validate(model, small(), CPU)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert validate(model, small(), CPU) == one
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_validation_loss_of_a_model_that_makes_no_answer() -> None:
    """The skip connection alone: its weighted error is 1 on data of the spread that EDM assumes."""
    data = points(0, train_size=2, validation=1000, test_size=2)
    found = validate(denoiser(), data, CPU)
    # The ring's spread is 0.4975 a coordinate; 1,000 samples of mean 1 and standard deviation 1.
    assert found["denoising"] == pytest.approx(1, abs=0.13)
    assert validate(exact(), data, CPU)["denoising"] < 0.9 * found["denoising"]
    assert "denoising" not in validate(denoiser(sampler="few_step", steps=1), data, CPU)


def test_the_same_noise_every_time() -> None:
    """Also of a sampler that draws noise of its own; batches of 250."""
    model = exact(sampler="few_step", steps=3)
    torch.manual_seed(1)
    one = generate(model, 300, CPU)
    torch.manual_seed(2)
    assert torch.equal(generate(model, 300, CPU), one)
    assert len(one.unique(dim=0)) == 300


def test_images(digits: ImageData, tmp_path: Path) -> None:
    """Denoisers of classes that give back pictures of the data, or grey."""
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    data = dataclasses.replace(digits)
    images = digits.train.fetch(torch.arange(len(digits.train)))

    class Remembers(Denoiser):
        def forward(self, batch):  # type: ignore[no-untyped-def]
            assert set(batch["label"].tolist()) <= set(range(10))
            picked = [images["image"][images["label"] == label][number] for number, label in enumerate(batch["label"])]
            return Denoised(2 * torch.stack(picked) - 1, batch["noisy"])

    found: dict[str, dict[str, float]] = {}
    for kind in (Remembers, Denoiser):
        model = build(
            "unet_denoiser", data.task, width=8, multipliers=[1], conditional=True, sampler="few_step", steps=1
        )
        model.__class__ = kind
        folder = tmp_path / kind.__name__
        folder.mkdir()
        few = dataclasses.replace(data, test=data.test.subset(range(100)))
        found[kind.__name__] = report(model, {}, few, folder, CPU)
        shown: dict[str, Tensor] = safetensors.torch.load_file(folder / FILE)
        assert shown["student"].shape == (64, 1, 8, 8)
    good, grey = found["Remembers"], found["Denoiser"]
    for name in ("frechet_distance", "energy_distance", "sliced_wasserstein", "validation/frechet_distance"):
        assert good[name] < 0.5 * grey[name], name
    assert "modes" not in good
