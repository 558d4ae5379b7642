"""KD on pruned data: the loss, what is kept, whole runs on digits, and the theory for ridge regression."""

import copy
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.labels.prune import keep_hardest
from limbeck.labels.scores import prototype_distance
from limbeck.labels.types import Labels
from limbeck.methods.classification.kd import KD
from limbeck.methods.classification.kd_data_pruning import ALPHAS, KDDataPruning, PrunedKD
from limbeck.methods.classification.supervised import Supervised
from limbeck.methods.method import Nested, Ready
from limbeck.models.classifier import Classifier
from limbeck.models.kernel_ridge import distilled_ridge
from limbeck.stages.fit import Fit
from limbeck.stages.score import TABLE, Outputs, read, score
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, drive
from limbeck.teachers.frozen import Frozen
from tests.methods.programs import run_stages
from tests.methods.tables import Floats, Table, assert_equal, batch, fit, small, softmax, student, total, value

FIT = FitSettings(updates=10, batch_size=20, accelerator="cpu", evaluations=1)
FULL = dataclasses.replace(FIT, updates=None, epochs=4, batch_size=40)


def method(data: ImageData, **changes: Any) -> KDDataPruning:
    given: dict[str, Any] = {"student": student(data), "fit": FIT, "full": FULL, "fraction": 0.2, "alpha": 0.9}
    return KDDataPruning(data=data, **{**given, **changes})


def run(made: KDDataPruning, folder: Path, seed: int = 0) -> tuple[list[str], dict[str, float], list[Fit]]:
    """The names of the stages, the metrics of the last, and the fits."""
    stages = run_stages(made, folder, seed=seed)
    metrics = json.loads((folder / list(stages)[-1] / "result.json").read_text())["metrics"]
    return list(stages), metrics, [stage for stage in stages.values() if isinstance(stage, Fit)]


def kept(fits: list[Fit]) -> set[int]:
    return set(fits[-1].data.train.indices.tolist())


# the loss


def test_gradient_of_the_soft_term() -> None:
    """tau = 1, alpha = 1: (softmax(z_S) - softmax(z_T)) / B; zero-mean logits, tau to infinity: (z_S - z_T) / (C B)."""
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(2, 4, 5))
    s, t = s - s.mean(-1, keepdims=True), t - t.mean(-1, keepdims=True)

    def gradient(temperature: float) -> Floats:
        table = Table(s)
        total(PrunedKD(table, Frozen(Table(t)), 1.0, temperature).terms(batch([0] * 4))).backward()
        return table.gradient()

    np.testing.assert_allclose(gradient(1.0), (softmax(s) - softmax(t)) / 4, atol=1e-15)
    # First order in 1 / tau: logits of 3 leave about 3^2 / 1e4 of their difference.
    np.testing.assert_allclose(gradient(1e4), (s - t) / 20, atol=1e-4)
    np.testing.assert_allclose(gradient(1e4), (s - t) / 20, rtol=0.02, atol=2e-5)


def test_switch_takes_tau_squared_out_of_the_soft_term_only() -> None:
    s, t = np.random.default_rng(0).normal(size=(2, 4, 3))
    with_it, without = (
        PrunedKD(Table(s), Frozen(Table(t)), 0.7, 4.0, scale_by_t2=scale).terms(batch([0, 1, 2, 0]))
        for scale in (True, False)
    )
    assert torch.equal(value(with_it["ce"]), value(without["ce"]))
    torch.testing.assert_close(value(without["kd"]) * 16, value(with_it["kd"]), rtol=1e-14, atol=0)


def test_all_samples_are_kd_and_no_teacher_is_supervised(digits: ImageData, tmp_path: Path) -> None:
    """f = 1 with alpha > 0, and alpha = 0 on the kept samples: bit for bit."""
    data = small(digits)
    teacher = student(data, seed=1)
    _, _, fits = run(method(data, teacher=Ready(copy.deepcopy(teacher)), fraction=1.0), tmp_path / "all")
    assert kept(fits) == set(data.train.indices.tolist())
    settings = {"updates": 10, "batch_size": 20, "evaluations": 1}
    other = fit(KD(student(data), Frozen(teacher), 0.9, 4.0), fits[-1].data, tmp_path / "kd", **settings)  # type: ignore[arg-type]
    assert_equal(dict(fits[-1].objective.student.state_dict()), other)
    _, _, fits = run(method(data, teacher=Ready(copy.deepcopy(teacher)), alpha=0.0), tmp_path / "none")
    assert len(kept(fits)) == 40
    plain = fit(Supervised(student(data)), fits[-1].data, tmp_path / "ce", **settings)  # type: ignore[arg-type]
    assert_equal(dict(fits[-1].objective.student.state_dict()), plain)


# what is kept


def test_random_subsets_are_nested_and_depend_on_the_seed(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    found = {}
    for fraction, teacher in ((0.1, Ready(student(data))), (0.3, None)):
        made = method(data, fraction=fraction, teacher=teacher, alpha=0.0)
        found[fraction] = kept(run(made, tmp_path / str(fraction))[2])
    assert len(found[0.1]) == 20
    assert found[0.1] < found[0.3]
    other = kept(run(method(data, fraction=0.1, teacher=Ready(student(data))), tmp_path / "other", seed=1)[2])
    assert other != found[0.1]


@pytest.mark.parametrize("rule", ["forgetting", "el2n", "grand"])
@pytest.mark.parametrize("balanced", [False, True])
def test_hardest_samples_of_the_full_training_are_kept(
    digits: ImageData, tmp_path: Path, rule: Any, balanced: bool
) -> None:
    data = small(digits)
    stages, metrics, fits = run(method(data, pruning=rule, class_balanced=balanced), tmp_path)
    assert stages == ["full-0", "fit"]
    scores = read(tmp_path / "full-0" / TABLE)[rule]
    weights = keep_hardest(Labels(data.train.labels), scores, 0.2, balanced=balanced).weights
    assert kept(fits) == set(data.train.indices[weights > 0].tolist())
    counts = torch.bincount(data.train.labels[weights > 0], minlength=10)
    assert (metrics["kept"], metrics["kept/rarest"], metrics["kept/most"]) == (40, counts.min(), counts.max())
    assert (metrics["kept/most"] - metrics["kept/rarest"] <= 2) == balanced


def test_one_run_gives_scores_and_teacher_but_not_the_first_weights(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    made = method(data, pruning="el2n")
    first = copy.deepcopy(made.student.state_dict())
    _, metrics, fits = run(made, tmp_path)
    full, last = fits
    assert_equal(
        dict(last.objective.teachers()["teacher"].model.state_dict()), dict(full.objective.student.state_dict())
    )
    assert "teacher/accuracy" in metrics
    assert len(full.data.train) == 200
    # The student began where it was built.
    again = PrunedKD(student(data), Frozen(copy.deepcopy(full.objective.student)), 0.9)
    assert_equal(first, dict(again.student.state_dict()))
    settings = {"updates": 10, "batch_size": 20, "evaluations": 1}
    assert_equal(fit(again, last.data, tmp_path / "again", **settings), dict(last.objective.student.state_dict()))  # type: ignore[arg-type]


def test_teacher_of_another_size_does_not_score(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    teacher = KDDataPruning(data, student(data, width=6), FIT, Ready(student(data, width=2)), alpha=0.0)
    stages, metrics, fits = run(method(data, pruning="el2n", teacher=Nested("teacher", teacher), runs=2), tmp_path)
    assert stages == ["full-0", "full-1", "teacher-fit", "fit"]
    assert metrics["teacher/parameters"] > metrics["parameters"]
    scores = torch.stack([read(tmp_path / name / TABLE)["el2n"] for name in ("full-0", "full-1")]).mean(0)
    weights = keep_hardest(Labels(data.train.labels), scores, 0.2).weights
    assert kept(fits) == set(data.train.indices[weights > 0].tolist())


def test_prototypes_in_the_features_of_the_embedder(
    digits: ImageData, nearest_mean: Classifier, tmp_path: Path
) -> None:
    data = small(digits)
    made = method(data, pruning="prototypes", teacher=Ready(student(data)), embedder=Ready(nearest_mean), clusters=7)
    stages, _, fits = run(made, tmp_path)
    assert stages == ["features", "fit"]
    features = score(Outputs(nearest_mean, ["features"]), data.train)["features"]
    weights = keep_hardest(Labels(data.train.labels), prototype_distance(features, 7, seed=0), 0.2).weights
    assert kept(fits) == set(data.train.indices[weights > 0].tolist())
    own = kept(run(method(data, pruning="prototypes", teacher=Ready(student(data, seed=1))), tmp_path / "own")[2])
    assert own != kept(fits)


def test_given_scores(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    np.save(tmp_path / "scores.npy", -np.arange(data.train.num_samples, dtype=np.float32))
    made = method(data, pruning="given", scores=str(tmp_path / "scores.npy"), teacher=Ready(student(data)))
    smallest = set(data.train.indices.sort().values[:40].tolist())
    found = kept(run(made, tmp_path)[2])
    # But for classes that the first forty do not have.
    assert len(found & smallest) >= 38


# alpha


def test_automatic_alpha_falls_with_the_fraction(digits: ImageData) -> None:
    data = small(digits)
    found = [method(data, fraction=f, alpha="auto").alpha for f in (0.01, 0.1, 0.5, 1.0)]
    assert found == pytest.approx([0.995, 0.95, 0.75, 0.5])
    assert method(data, fraction=0.5, alpha="auto", alpha_min=0.2, alpha_max=0.8).alpha == pytest.approx(0.5)


def test_search_takes_the_best_on_the_validation_data(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    stages, metrics, _ = run(method(data, alpha="search", teacher=Ready(student(data, seed=1))), tmp_path)
    assert stages == [*(f"alpha-{alpha}" for alpha in ALPHAS), "fit"]
    results = [json.loads((tmp_path / s / "result.json").read_text())["metrics"] for s in stages[:-1]]
    accuracies = [result["validation/accuracy"] for result in results]
    assert len(set(accuracies)) > 1
    assert metrics["alpha"] == ALPHAS[int(np.argmax(accuracies))]


def test_comparison_without_the_teacher(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    stages, metrics, fits = run(method(data, compare=True, teacher=Ready(student(data, seed=1))), tmp_path)
    assert stages == ["ce", "fit"]
    alone = json.loads((tmp_path / "ce/result.json").read_text())["metrics"]
    assert metrics["ce/accuracy"] == pytest.approx(alone["accuracy"])
    assert metrics["gain"] == pytest.approx(metrics["accuracy"] - alone["accuracy"])
    assert torch.equal(fits[0].data.train.indices, fits[1].data.train.indices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fraction": 0.0}, "fraction is 0.0; it must be above 0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha_max": 2.0}, "alpha_max is 2.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"runs": 0}, "runs is 0"),
        ({"clusters": 201}, "clusters is 201"),
        ({"pruning": "given"}, "scores names a file"),
        ({"scores": "x.npy"}, "scores names a file"),
    ],
)
def test_wrong_arguments(digits: ImageData, change: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        method(small(digits), **change)


def test_labels_are_needed(digits: ImageData) -> None:
    data = small(digits)
    with pytest.raises(LimbeckError, match="labels of all training samples"):
        method(dataclasses.replace(data, train=data.train.unlabel()))


@pytest.mark.parametrize("rule", ["random", "forgetting", "el2n", "grand", "prototypes"])
def test_dry_run_knows_the_stages(digits: ImageData, tmp_path: Path, rule: Any) -> None:
    context = Context(tmp_path / "none", "pruning", seed=0, dry_run=True)
    drive(method(small(digits), pruning=rule).program(), context)
    between = ["features"] if rule == "prototypes" else []
    assert [row["stage"] for row in context.estimates] == ["full-0", *between, "fit"]
    assert not (tmp_path / "none").exists()


# the theory: ridge regression, the student on n_f columns, the teacher on n_t, both with the penalty lambda


def ridge_student(x: Floats, y: Floats, teacher: Floats, penalty: float, alpha: float) -> Floats:
    """theta_S = (X_f X_f^T + lambda I)^-1 X_f ((1 - alpha) y_f + alpha X_f^T theta_T)."""
    found: Floats = np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), x @ ((1 - alpha) * y + alpha * x.T @ teacher))
    return found


def expected_error(n_f: int, n_t: int, alpha: float, penalty: float = 2.0, d: int = 5, s2: float = 0.5) -> float:
    """E ||theta_S - theta*||^2 for whitened designs and ||theta*|| = 1."""
    a_f, a_t = n_f / (n_f + penalty), n_t / (n_t + penalty)
    bias = (1 - a_f * (1 - alpha + alpha * a_t)) ** 2
    own, rest = (1 - alpha) / (n_f + penalty) + alpha * a_f / (n_t + penalty), alpha * a_f / (n_t + penalty)
    return bias + s2 * d * (n_f * own**2 + (n_t - n_f) * rest**2)


def test_closed_form_of_the_error() -> None:
    assert [expected_error(10, 40, a) for a in (0, 0.5, 1)] == pytest.approx(
        [0.2013889, 0.1086979, 0.0819476], abs=5e-8
    )
    of_teachers = [expected_error(10, n, 1.0) for n in (10, 20, 40, 100)]
    assert of_teachers == pytest.approx([0.2139275, 0.1305096, 0.0819476, 0.0501784], abs=5e-8)
    assert all(a > b for a, b in itertools.pairwise(of_teachers))  # theorem 1


def test_best_alpha_falls_with_the_fraction_as_the_automatic_one_does(digits: ImageData) -> None:
    grid = np.arange(101) / 100
    best = [float(grid[np.argmin([expected_error(n, 40, a) for a in grid])]) for n in (4, 10, 20, 36, 40)]
    assert best == [0.96, 0.95, 0.94, 0.78, 0.25]
    ours = [method(small(digits), fraction=n / 40, alpha="auto").alpha for n in (4, 10, 20, 36, 40)]
    assert all(isinstance(alpha, float) for alpha in ours)
    assert all(a > b for a, b in itertools.pairwise(ours))  # type: ignore[operator]


def test_closed_form_against_simulation() -> None:
    rng = np.random.default_rng(0)
    d, n_f, n_t, penalty = 5, 10, 40, 2.0
    # X_f X_f^T = n_f I and X_t X_t^T = n_t I: two blocks with orthogonal rows.
    blocks = [np.linalg.qr(rng.normal(size=(n, d)))[0].T * np.sqrt(n) for n in (n_f, n_t - n_f)]
    x = np.concatenate(blocks, axis=1)
    truth = rng.normal(size=d)
    truth /= np.linalg.norm(truth)
    errors: dict[float, list[float]] = {0.0: [], 0.5: [], 1.0: []}
    for _ in range(3000):
        y = x.T @ truth + np.sqrt(0.5) * rng.normal(size=n_t)
        teacher = np.linalg.solve(x @ x.T + penalty * np.eye(d), x @ y)
        for alpha, found in errors.items():
            found.append(float(np.sum((ridge_student(x[:, :n_f], y[:n_f], teacher, penalty, alpha) - truth) ** 2)))
    for alpha, found in errors.items():
        # Four standard errors.
        assert abs(np.mean(found) - expected_error(n_f, n_t, alpha)) < 4 * np.std(found) / np.sqrt(3000)


def test_ridge_student_is_linear_in_alpha_and_a_step_of_self_distillation() -> None:
    rng = np.random.default_rng(1)
    x, y, penalty = rng.normal(size=(3, 8)), rng.normal(size=8), 1.5
    teacher = np.linalg.solve(x @ x.T + penalty * np.eye(3), x @ y)
    ends = [ridge_student(x, y, teacher, penalty, alpha) for alpha in (0.0, 1.0)]
    np.testing.assert_allclose(ends[0], teacher, atol=1e-14)  # X_f = X
    gram = torch.tensor(x.T @ x)
    for alpha in (0.2, 0.7):
        found = ridge_student(x, y, teacher, penalty, alpha)
        np.testing.assert_allclose(found, ends[0] + alpha * (ends[1] - ends[0]), atol=1e-14)
        # There alpha is the weight of the truth, here of the teacher.
        steps = distilled_ridge(gram, torch.tensor(y)[:, None], penalty, [1.0, 1 - alpha])
        np.testing.assert_allclose(x.T @ found, (gram @ steps[1])[:, 0].numpy(), atol=1e-13)
