import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.data.points import PointData, points
from limbeck.errors import LimbeckError
from limbeck.methods.diffusion.dmd2 import DMD2
from limbeck.models import Classifier, build
from limbeck.models.classifier import ImageTask
from limbeck.models.denoiser import Denoiser
from limbeck.stages.digest import digest
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Terms
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context
from limbeck.teachers.frozen import Frozen
from tests.contract.training import KillAt, Killed
from tests.methods.tables import assert_equal, value


def small() -> PointData:
    return points(0, train_size=400, validation=100, test_size=100)


def teacher(**arguments: Any) -> Frozen:
    torch.manual_seed(0)
    model = build("mlp_denoiser", small().task, **{"hidden": 16, "steps": 2, **arguments})
    with torch.no_grad():
        for parameter in model.parameters():  # the last layer begins at 0
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Frozen(model)


def picture_teacher(**arguments: Any) -> Frozen:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    task = ImageTask(("a", "b", "c"), 1, (8, 8), (0.0,), (1.0,))
    model = build("unet_denoiser", task, **{"width": 8, "multipliers": [1, 1], "conditional": True, **arguments})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Frozen(model)


def batch_for(objective: DMD2, size: int = 6) -> dict[str, Tensor]:
    """A batch of points, with what is drawn for it."""
    batch = {"point": torch.randn(size, 2), "index": torch.arange(size)}
    return {**batch, **objective.draw(batch)}


def fit(objective: DMD2, folder: Path, reporter: Any = None, data: Any = None, **settings: Any) -> dict[str, Tensor]:
    how = {"updates": 10, "batch_size": 20, "evaluations": 0, "accelerator": "cpu", "log_every": 5}
    optimizer = {"name": "adam", "lr": 1e-3}
    stage = Fit("fit", objective, data or small(), FitSettings(**{**how, "optimizer": optimizer, **settings}))
    context = Context(folder, "dmd2", seed=0)
    if reporter is not None:
        context.reporter = reporter
    stage.run(folder / "fit", context)
    return {name: tensor.clone() for name, tensor in objective.student.state_dict().items()}


class Counted(DMD2):
    """Writes down which terms were minimised, and what they were given."""

    def forward(self, batch: Batch, terms: str = "terms") -> Terms:
        self.__dict__.setdefault("calls", []).append((terms, "generated" in batch))
        return super().forward(batch, terms)


@pytest.mark.parametrize(("R", "generator"), [(5, [0, 5]), (1, list(range(10))), (3, [0, 3, 6, 9])])
def test_two_time_scales(R: int, generator: list[int], tmp_path: Path) -> None:
    """After 10 updates the generator has stepped at those with k % R == 0, first, and the critic every time."""
    objective = Counted(teacher(), R=R)
    fit(objective, tmp_path)
    expected = []
    for k in range(10):
        expected += [("generator", False)] * (k in generator) + [("guidance", k in generator)]
    assert objective.calls == expected  # type: ignore[attr-defined]


def test_critic_sees_what_the_generator_made_before_its_step(tmp_path: Path) -> None:
    """Both kinds of term speak of one x: nothing is made twice, and not by the generator after its update."""
    made: list[Tensor] = []
    seen: list[Tensor] = []

    class Watched(DMD2):
        def generate(self, batch: Batch) -> Tensor:
            made.append(super().generate(batch))
            return made[-1]

        def guidance(self, batch: Batch) -> Terms:
            if "generated" in batch:
                seen.append(batch["generated"])
            return super().guidance(batch)

    fit(Watched(teacher(), R=2), tmp_path, updates=4, accumulate=2)
    # Two micro-batches each; every second update the critic is given what the generator's terms made.
    assert len(made) == 8
    assert torch.equal(torch.cat(seen), torch.cat([made[0], made[1], made[4], made[5]]))
    assert not seen[0].requires_grad


def test_levels() -> None:
    """U{20..980} where distributions are matched, U{0..999} elsewhere, both ends included."""
    objective = DMD2(teacher())
    drawn: list[tuple[int, int]] = []
    levels = objective.levels

    def watched(like: Tensor, first: int = 0, last: int = 999) -> Tensor:
        drawn.append((first, last))
        return levels(like, first, last)

    objective.levels = watched  # type: ignore[method-assign]
    batch = batch_for(objective)
    objective.generator(batch)
    objective.guidance(batch)
    assert drawn == [(20, 980), (0, 999), (0, 999), (0, 999)]
    for first, last in {*drawn}:
        found = levels(torch.zeros(200_000, 2), first, last)
        assert float(found.min()) == float(objective.student.sigmas[first])
        assert float(found.max()) == float(objective.student.sigmas[last])


def test_generator_terms_reach_the_generator_only() -> None:
    objective = DMD2(teacher())
    with torch.no_grad():  # critic and teacher are one at first, and nothing is matched
        objective.fake.denoiser.body.answer.bias.add_(1.0)  # type: ignore[union-attr]
    terms = objective.generator(batch_for(objective))
    assert list(terms) == ["dm", "gan"]
    for name in terms:
        grads = torch.autograd.grad(value(terms[name]), list(objective.student.parameters()), retain_graph=True)
        assert all(g.abs().sum() > 0 for g in grads[-2:]), name
    sum(value(term) for term in terms.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in objective.fake.parameters())
    assert all(p.grad is None for p in objective.teacher.parameters())


def test_guidance_terms_reach_the_critic_only() -> None:
    objective = DMD2(teacher())
    terms = objective.guidance(batch_for(objective))
    assert list(terms) == ["denoising", "discriminator"]
    hidden = objective.fake.denoiser.body.hidden[0].weight  # type: ignore[union-attr, index]
    for name in terms:  # the discriminator's loss trains the trunk too
        (gradient,) = torch.autograd.grad(value(terms[name]), hidden, retain_graph=True)
        assert gradient.abs().sum() > 0, name
    sum(value(term) for term in terms.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in objective.student.parameters())


def test_nothing_is_matched_while_critic_and_teacher_are_one() -> None:
    objective = DMD2(teacher(), lambda_g=0.0)
    terms = objective.generator(batch_for(objective))
    assert list(terms) == ["dm"]
    assert value(terms["dm"]).item() == 0
    # And without a discriminator its head neither trains nor is asked.
    assert list(objective.guidance(batch_for(objective))) == ["denoising"]
    assert not {id(p) for p in objective.fake.head.parameters()} & {id(p) for p in objective.parameter_groups()["fake"]}


def test_weights_of_the_terms() -> None:
    one, other = DMD2(teacher()), DMD2(teacher(), lambda_g=3e-2, lambda_c=0.5)
    other.load_state_dict(one.state_dict())
    batch = batch_for(one)
    found = []
    for objective in (one, other):
        torch.manual_seed(7)
        found.append({**objective.generator(batch), **objective.guidance(batch)})
    ratio = {name: (value(found[1][name]) / value(found[0][name])).item() for name in ("gan", "discriminator")}
    assert ratio == pytest.approx({"gan": 10, "discriminator": 50}, rel=1e-5)
    assert value(found[1]["denoising"]).item() == value(found[0]["denoising"]).item()


def test_losses_of_a_head_that_tells_nothing() -> None:
    objective = DMD2(teacher())
    with torch.no_grad():
        for parameter in objective.fake.head.parameters():
            parameter.zero_()
    batch = batch_for(objective)
    assert value(objective.generator(batch)["gan"]).item() == pytest.approx(3e-3 * 0.693147, rel=1e-5)
    assert value(objective.guidance(batch)["discriminator"]).item() == pytest.approx(1e-2 * 1.386294, rel=1e-5)


def test_discriminator_learns_which_samples_are_real() -> None:
    torch.manual_seed(0)
    objective = DMD2(teacher(), lambda_c=100.0)
    real, made = torch.full((64, 2), 1.0), torch.full((64, 2), -1.0)
    batch = {**batch_for(objective, 64), "point": real, "generated": made}
    optimizer = torch.optim.Adam(objective.fake.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        value(objective.guidance(batch)["discriminator"]).backward()
        optimizer.step()
    real_logit, made_logit = (
        objective.fake({"noisy": x, "sigma": torch.full((64,), 0.1)}).logit.mean().item() for x in (real, made)
    )
    assert real_logit > 1
    assert made_logit < -1


@pytest.mark.parametrize("parameterisation", ["edm", "epsilon"])
def test_one_step_is_the_network_at_the_highest_level(parameterisation: str) -> None:
    objective = DMD2(teacher(parameterisation=parameterisation))
    batch = batch_for(objective)
    model, z = objective.student, batch["noise"]
    sigma = model.sigmas[-1]
    start = 10 * z if parameterisation == "edm" else z * (1 + sigma**2).sqrt()
    expected = model({"noisy": start, "sigma": sigma.expand(6)}).clean
    assert torch.equal(objective.generate(batch), expected)
    assert torch.equal(model.sample(z), expected)
    assert (model.sampler, model.steps, model.arguments["sampler"]) == ("few_step", 1, "few_step")
    assert objective.teacher.model.sampler == "heun"
    # L_fake of epsilon is the squared error of the noise itself.
    if parameterisation == "epsilon":
        torch.manual_seed(5)
        found = value(objective.guidance({**batch, "generated": expected})["denoising"]).item()
        torch.manual_seed(5)
        level = objective.levels(expected)
        noise = torch.randn_like(expected)
        clean = objective.fake.denoiser({"noisy": expected + level[:, None] * noise, "sigma": level}).clean
        answered = (expected + level[:, None] * noise - clean) / level[:, None]
        assert found == pytest.approx((answered - noise).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_backward_simulation_is_inference_cut_short(position: int) -> None:
    """The input of a step is what the generator itself would see there; only the last step has a gradient."""
    objective = DMD2(teacher(), steps=4)
    batch = {**batch_for(objective), "position": torch.full((6,), position)}
    calls: list[tuple[float, bool]] = []
    objective.student.register_forward_hook(
        lambda module, inputs, output: calls.append((float(inputs[0]["sigma"][0]), output.clean.requires_grad))
    )
    torch.manual_seed(2)
    made = objective.generate(batch)
    levels = objective.student.sigmas[[999, 749, 499, 249]].tolist()
    assert calls == [(levels[k], k == position) for k in range(position + 1)]
    if position == 3:
        torch.manual_seed(2)
        torch.testing.assert_close(objective.student.sample(batch["noise"]), made)


def test_without_backward_simulation_real_samples_are_noised() -> None:
    objective = DMD2(teacher(), steps=4, backward_simulation=False)
    batch = batch_for(objective, 4000)
    seen: list[dict[str, Tensor]] = []
    objective.student.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    objective.generate(batch)
    (one,) = seen
    levels = objective.student.sigmas[[999, 749, 499, 249]]
    counts = (one["sigma"][:, None] == levels).sum(dim=0)
    assert counts.sum() == 4000
    assert (counts - 1000).abs().max() < 120  # four standard deviations
    noise = (one["noisy"] - batch["point"]) / one["sigma"][:, None]
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


def test_one_position_for_the_whole_batch(tmp_path: Path) -> None:
    found: list[Tensor] = []

    class Watched(DMD2):
        def guidance(self, batch: Batch) -> Terms:
            found.append(batch["position"].unique())
            return super().guidance(batch)

    fit(Watched(teacher(), steps=4), tmp_path, updates=40)
    assert all(len(one) == 1 for one in found)
    assert {int(one) for one in found} == {0, 1, 2, 3}


def test_guidance_without_a_classifier() -> None:
    frozen = picture_teacher()
    objective = DMD2(frozen, guidance_scale=1.75)
    noisy = {"noisy": torch.randn(3, 1, 8, 8), "sigma": torch.ones(3), "label": torch.arange(3)}
    free = frozen({**noisy, "label": torch.full((3,), -1)}).clean
    told = frozen(noisy).clean
    assert not torch.allclose(free, told)
    torch.testing.assert_close(objective.real(noisy), free + 1.75 * (told - free))
    assert torch.equal(DMD2(frozen).real(noisy), told)


def test_pictures_and_their_classes() -> None:
    objective = DMD2(picture_teacher(dropout=0.3))
    assert all(m.p == 0 for m in objective.student.modules() if isinstance(m, torch.nn.Dropout))
    label = torch.tensor([0, 1, 2, -1, 0, 1] * 50)
    batch = {"image": torch.rand(300, 1, 8, 8), "label": label, "index": torch.arange(300)}
    drawn = objective.draw(batch)
    assert set(drawn["drawn_label"].tolist()) == {0, 1, 2}
    few = {name: tensor[:4] for name, tensor in {**batch, **drawn}.items()}
    terms = {**objective.generator(few), **objective.guidance(few)}
    assert all(bool(value(term).isfinite()) for term in terms.values())


def test_teacher_is_never_changed_and_copies_are_apart(tmp_path: Path) -> None:
    frozen = teacher()
    before = digest(frozen)
    objective = DMD2(frozen)
    start = copy.deepcopy(objective.student.state_dict())
    fit(objective, tmp_path)
    assert digest(frozen) == before
    after = objective.student.state_dict()
    assert any(not torch.equal(after[name], start[name]) for name in start)
    fake = objective.fake.denoiser.state_dict()
    assert any(not torch.equal(after[name], fake[name]) for name in start)
    loaded = Fit("fit", DMD2(teacher()), small(), FitSettings(accelerator="cpu")).load(tmp_path / "fit")
    assert isinstance(loaded, Denoiser)
    assert loaded.calls == 1


def test_generator_finds_the_distribution_of_its_teacher(tmp_path: Path) -> None:
    """An mlp_denoiser begins as the exact denoiser of N(0, 1 / 4): no training of the teacher is needed."""
    torch.manual_seed(0)
    model = build("mlp_denoiser", small().task, hidden=32, steps=5)
    objective = DMD2(Frozen(model), lambda_g=0.0)
    noise = torch.randn(2000, 2)
    before = objective.student.sample(noise).std(dim=0)
    fit(objective, tmp_path, updates=800, batch_size=100, optimizer={"name": "adam", "lr": 5e-3, "betas": [0.0, 0.999]})
    after = objective.student.sample(noise).std(dim=0)
    # One call from pure noise gives the mean of the data at first; the teacher's own samples have 0.5.
    assert before.max() < 0.05
    assert (after - 0.5).abs().max() < 0.1


def test_resumes_between_two_updates_of_the_generator(tmp_path: Path) -> None:
    whole = fit(DMD2(teacher(), steps=2), tmp_path / "whole", updates=14)
    with pytest.raises(Killed):
        fit(DMD2(teacher(), steps=2), tmp_path / "cut", KillAt(8), updates=14, checkpoint_seconds=0.0)
    assert_equal(fit(DMD2(teacher(), steps=2), tmp_path / "cut", updates=14), whole)


def test_micro_batches_make_the_same_update(tmp_path: Path) -> None:
    """Noise is drawn by the micro-batch, so only the sizes agree: the loss stays finite and every term is logged."""
    objective = DMD2(teacher())
    fit(objective, tmp_path, accumulate=2)
    assert not objective.kept
    names = {line.split(",")[3] for line in (tmp_path / "fit" / "metrics.csv").read_text().splitlines()}
    assert {
        *("loss/generator", "loss/generator/dm", "loss/generator/gan"),
        *("loss/guidance", "loss/guidance/denoising", "loss/guidance/discriminator"),
        *("real_logit", "fake_logit"),
    } <= names


def test_bf16_stays_finite(tmp_path: Path) -> None:
    weights = fit(DMD2(teacher()), tmp_path, precision="bf16-mixed")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"R": 0}, "R is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"lambda_g": -1.0}, "lambda_g is -1"),
        ({"lambda_c": -1.0}, "lambda_c is -1"),
        ({"guidance_scale": 2.0}, "knows no classes"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        DMD2(teacher(), **arguments)


def test_refuses_a_classifier() -> None:
    with pytest.raises(LimbeckError, match="the teacher is a Classifier"):
        DMD2(Frozen(Classifier(torch.nn.Linear(2, 2), ("a", "b"), channels=1)))
