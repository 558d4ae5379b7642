import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.labels import mix_with_past, optimal_mix_weight
from limbeck.losses import mse
from limbeck.methods.classification.teacher_guidance import GuidedStep, TeacherGuidance, step_scores
from limbeck.models import load
from limbeck.stages.evaluation import predict_logits
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, Program, drive
from limbeck.teachers.frozen import Frozen
from tests.methods.tables import Floats, Table, batch, onehot, small, softmax, student, total, value

LOGITS = arrays(np.float64, (4, 3), elements=st.floats(-12, 12))
LABELS = st.lists(st.integers(0, 2), min_size=4, max_size=4)
FIT = FitSettings(updates=12, batch_size=50, evaluations=1, accelerator="cpu", optimizer={"name": "adam", "lr": 1e-2})


def step(z: Any, t: Any, alpha: float, rho: float = 0.0) -> GuidedStep:
    return GuidedStep(Table(z), None if t is None else Frozen(Table(t)), alpha, rho, step=2)


def run(method: TeacherGuidance, folder: Path) -> tuple[Any, Context, dict[str, float]]:
    context = Context(folder, "teacher-guidance", seed=0)
    model = drive(method.program(), context)
    result = json.loads((folder / context.stages[-1] / "result.json").read_text(encoding="utf-8"))
    return model, context, result["metrics"]


def guidance(data: ImageData, **options: Any) -> TeacherGuidance:
    return TeacherGuidance(data, student(data), FIT, **{"steps": 3, **options})


# One step. Probabilities are float32: 6e-8 of values up to 1, squared errors of up to 2.


def test_worked_example() -> None:
    objective = step(np.log([[0.5, 0.5]]), np.log([[0.8, 0.2]]), alpha=0.4)
    terms = objective.terms(batch([0]))
    assert value(terms["truth"]).item() == pytest.approx(0.4 * 0.25, abs=1e-7)
    assert value(terms["teacher"]).item() == pytest.approx(0.6 * 0.09, abs=1e-7)
    assert total(terms).item() == pytest.approx(0.154, abs=1e-7)


@given(LOGITS, LOGITS, LABELS, st.floats(0, 1), st.floats(0, 0.1))
def test_equation_and_gradient(z: Floats, t: Floats, labels: list[int], alpha: float, rho: float) -> None:
    objective = step(z, t, alpha, rho)
    loss = total(objective.terms(batch(labels)))
    loss.backward()
    p, q, y = softmax(z), softmax(t), onehot(labels, 3)
    size = np.linalg.norm(z)
    expected = alpha * ((p - y) ** 2).mean() + (1 - alpha) * ((p - q) ** 2).mean() + rho * size
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-6, atol=1e-6)
    # That of the squared error to the mixed target, through the softmax.
    error = 2 * (p - (alpha * y + (1 - alpha) * q)) / p.size
    gradient = p * (error - (p * error).sum(-1, keepdims=True)) + (rho * z / size if size else 0)
    table = objective.student
    assert isinstance(table, Table)
    np.testing.assert_allclose(table.gradient(), gradient, atol=1e-6)


def test_gradient_is_that_of_the_mixed_target() -> None:
    p = torch.tensor([[0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    given, labels = torch.tensor([[0.8, 0.2]], dtype=torch.float64), torch.tensor([0])
    mixed = mix_with_past(labels, given, 0.6)
    np.testing.assert_allclose(mixed.numpy(), [[0.88, 0.12]], atol=1e-12)
    (to_mixed,) = torch.autograd.grad(mse(p, mixed), p)
    two = 0.4 * mse(p, torch.tensor([[1.0, 0.0]], dtype=torch.float64)) + 0.6 * mse(p, given)
    (to_both,) = torch.autograd.grad(two, p)
    torch.testing.assert_close(to_mixed, to_both, rtol=0, atol=1e-15)


def test_first_step_has_no_teacher_and_full_weight() -> None:
    terms = step([[0.0, 0.0]], None, 1.0, rho=0.5).terms(batch([1]))
    assert terms.keys() == {"truth", "norms"}
    assert total(terms).item() == pytest.approx(0.25)
    assert GuidedStep(Table([[1.0, 0.0]]), None, 1.0, 0.0, step=1).teachers() == {}


def test_samples_without_a_label_count_for_the_teacher_only() -> None:
    z, t = np.random.default_rng(0).normal(size=(2, 2, 3))
    terms = step(z, t, 0.3).terms(batch([1, -1]))
    p, q = softmax(z), softmax(t)
    assert value(terms["truth"]).item() == pytest.approx(0.3 * ((p - onehot([1, 1], 3)) ** 2)[0].mean(), rel=1e-6)
    assert value(terms["teacher"]).item() == pytest.approx(0.7 * ((p - q) ** 2).mean(), rel=1e-6)


def test_extreme_logits() -> None:
    z = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    objective = step(z, z[::-1].copy(), 0.5, rho=1e-4)
    loss = total(objective.terms(batch([0, 0])))
    loss.backward()
    # Right and far from the teacher; wrong, and the teacher right: each 2 / 3 of a unit.
    assert loss.item() == pytest.approx(0.5 * (2 / 3) / 2 + 0.5 * (2 / 3) + 1e-4 * 2e4, rel=1e-6)
    table = objective.student
    assert isinstance(table, Table)
    assert np.isfinite(table.gradient()).all()


# The program


def test_every_step_starts_anew_and_learns_from_the_last(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    stages: list[Fit] = []
    starts = []

    def watched(method: TeacherGuidance) -> Program:
        program = method.program()
        artefact = None
        while True:
            try:
                stage = program.send(artefact)
            except StopIteration as finished:
                return finished.value
            stages.append(stage)
            starts.append(next(stage.objective.student.parameters()).detach().clone())
            artefact = yield stage

    model = drive(watched(guidance(data, alpha=0.4)), Context(tmp_path, "test", seed=0))
    objectives = [stage.objective for stage in stages]
    assert all(isinstance(objective, GuidedStep) for objective in objectives)
    assert objectives[0].teachers() == {}
    assert [o.alpha for o in objectives] == [1.0, 0.4, 0.4]
    for before, after in itertools.pairwise(objectives):
        assert after.teachers()["teacher"].model is before.student
    assert model is objectives[-1].student
    for one, other in itertools.combinations(starts, 2):
        assert not torch.equal(one, other)


def test_result_tells_what_the_steps_did(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    model, context, metrics = run(guidance(data, alpha=0.4), tmp_path)
    assert context.stages == ["step-1", "step-2", "step-3"]
    found = [step_scores(load(tmp_path / f"step-{n}" / "model"), data, n) for n in (1, 2, 3)]  # type: ignore[arg-type]
    for scores in found:
        assert scores.items() <= metrics.items()
    assert metrics["step-3/accuracy"] == metrics["accuracy"]
    assert metrics["step-3/brier"] == metrics["brier"]
    assert metrics["step-2/alpha"] == metrics["step-3/alpha"] == 0.4
    assert metrics["fits"] == 3
    assert metrics["best_step/accuracy"] == max(scores[f"step-{n}/accuracy"] for n, scores in enumerate(found, 1))
    confidence = [scores[f"step-{n}/confidence"] for n, scores in enumerate(found, 1)]
    assert metrics["confidence/largest_rise"] == pytest.approx(max(np.diff(confidence)), abs=1e-12)
    by_hand = torch.cat([model(data.train.fetch(torch.arange(200))).logits.softmax(-1).amax(-1)]).mean()
    # Means of float32 in another order of batches.
    assert confidence[-1] == pytest.approx(by_hand.item(), abs=1e-6)


def test_one_step_is_the_plain_fit(digits: ImageData, tmp_path: Path) -> None:
    _, context, metrics = run(guidance(small(digits), steps=1, alpha="estimated"), tmp_path)
    assert context.stages == ["step-1"]
    assert metrics["best_step/accuracy"] == metrics["accuracy"]
    assert "confidence/largest_rise" not in metrics


def test_estimated_weight_trains_one_network_more_a_step(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    _, context, metrics = run(guidance(data, alpha="estimated"), tmp_path)
    assert context.stages == ["step-1", "step-2-alpha-0", "step-2", "step-3-alpha-0", "step-3"]
    assert metrics["fits"] == 5
    for number in (2, 3):
        u, v = (
            predict_logits(load(tmp_path / name / "model"), data.validation).logits.softmax(-1)
            for name in ("step-1", f"step-{number}-alpha-0")
        )
        assert metrics[f"step-{number}/alpha"] == float(optimal_mix_weight(data.validation.labels, u, v))
    assert 0 <= metrics["step-3/alpha"] <= 1


def test_grid_takes_the_weight_of_the_least_error_on_held_out_data(digits: ImageData, tmp_path: Path) -> None:
    _, context, metrics = run(guidance(small(digits), alpha="grid", grid=3, steps=2), tmp_path)
    tried = [f"step-2-alpha-{alpha}" for alpha in ("0", "0.5", "1")]
    assert context.stages == ["step-1", *tried, "step-2"]
    assert metrics["fits"] == 5
    errors = [
        json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8"))["metrics"]["validation/brier"]
        for name in tried
    ]
    assert metrics["step-2/alpha"] == (0.0, 0.5, 1.0)[int(np.argmin(errors))]


def test_without_ground_truth_later_steps_read_no_label(digits: ImageData, tmp_path: Path) -> None:
    """The first step taken from one run, the second with all labels turned: the same weights."""
    data = small(digits)
    turned = dataclasses.replace(data, train=data.train.relabel((data.train.labels + 1) % 10))
    weights = []
    for name, of in (("true", data), ("turned", turned)):
        method = guidance(of, alpha=0.0)
        torch.manual_seed(0)
        stage = method.distil("step-2", 2, student(data, seed=1), 0.0)
        stage.run(tmp_path / name, Context(tmp_path, "test", seed=0))
        weights.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_module_that_nobody_can_make_again_is_refused(digits: ImageData) -> None:
    with pytest.raises(LimbeckError, match="how a model was made"):
        TeacherGuidance(digits, Table(np.eye(3)), FIT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"alpha": 1.5}, r"alpha is 1.5; it must lie between 0 and 1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"rho": -1.0}, "rho is -1.0"),
        ({"grid": 1}, "grid is 1; it must be at least 2"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_trained(
    digits: ImageData, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(LimbeckError, match=message):
        guidance(digits, **change)
