"""WAD: the loss by hand, a recount of its rounds, and what weights do on digits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.class_mismatch import class_mismatch
from limbeck.data.samples import ImageData, concat
from limbeck.data.stream import eval_batches
from limbeck.errors import LimbeckError
from limbeck.labels.nearest_labelled import class_similarity, nearest_class
from limbeck.labels.query import largest
from limbeck.methods.semi_supervised.contrastive import Contrastive
from limbeck.methods.semi_supervised.wad import WAD, WeightedPseudoLabels
from limbeck.metrics.ranking import auc
from limbeck.models.whitened import Whitening
from limbeck.stages.fit import Fit
from limbeck.stages.score import TABLE, Score, read
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Stage
from tests.methods.programs import run_stages
from tests.methods.tables import Table, batch, log_softmax, student, value

ADAM = {"name": "adam", "lr": 3e-3}
SETTINGS = FitSettings(updates=8, batch_size=20, accelerator="cpu", evaluations=1, optimizer=ADAM)


@pytest.fixture(scope="module")
def mixed() -> ImageData:
    """Four digits with five labels each; of the unlabelled images three in five are other digits."""
    return class_mismatch(0, {"name": "digits", "labels_per_class": 5, "view": "none"}, ["0", "1", "2", "3"], 0.6)


def method(data: ImageData, pretraining: FitSettings = SETTINGS, **changes: Any) -> WAD:
    given = {"rounds": 2, "feature_views": 0, "outputs": 16, "preprocessing": "channels", **changes}
    return WAD(data, student(data), student(data, seed=1, width=8), pretraining, SETTINGS, **given)


def metrics(folder: Path, stage: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / stage / "result.json").read_text(encoding="utf-8"))["metrics"]
    return found


class Pool:
    """What the objective asks of its samples."""

    def __init__(self, count: int) -> None:
        self.num_samples, self.indices = count, torch.arange(count).flip(0)


def weighted(logits: Any, weights: list[float]) -> WeightedPseudoLabels:
    # Weights are those of the samples in their order; indices run the other way.
    return WeightedPseudoLabels(Table(logits), Pool(6), torch.tensor(weights[::-1]), {})  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [[0.0] * 3, [1.0] * 3, [0.5, 0.0, 2.0]])
def test_loss_against_numpy(weights: list[float]) -> None:
    z = np.random.default_rng(0).normal(size=(6, 4)) * 3
    objective = weighted(z, [0.1, 0.1, 0.1, *weights])
    known, other = batch([2, 0, 1], [0, 1, 2], of=6), batch([3, 1, 1], [3, 4, 5], of=6)
    other["hidden_label"] = torch.tensor([3, 0, -1])
    terms = objective.terms({"labeled": known, "unlabeled": other})
    log_q = log_softmax(z)
    assert value(terms["ce"]).item() == pytest.approx(-log_q[[0, 1, 2], [2, 0, 1]].mean(), rel=1e-9)
    # The mean is over all unlabelled images, whatever they weigh: all 0 leaves supervised training, all 1 plain
    # pseudo-labelling.
    expected = -(np.array(weights) * log_q[[3, 4, 5], [3, 1, 1]]).mean()
    assert value(terms["pseudo"]).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    (coverage,) = objective.observed["coverage"]
    assert value(coverage).item() == pytest.approx(np.mean(weights))
    (precision,) = objective.observed["precision"]
    if weights[0] + weights[1]:
        assert value(precision).item() == pytest.approx(weights[0] / (weights[0] + weights[1]))


def test_how_many_join(mixed: ImageData) -> None:
    five = method(mixed, rounds=5)
    # 0.1 (1 - i / 5)^2: 0.064, 0.036, 0.016, 0.004, 0, 0.
    assert [five.joining(number, 1000) for number in range(1, 7)] == [64, 36, 16, 4, 0, 0]
    assert [five.joining(1, size) for size in (0, 15, 16, 31, 32)] == [0, 0, 1, 1, 2]
    assert method(mixed, rounds=5, alpha=1.0, power=1.0).joining(2, 10) == 6


@pytest.mark.parametrize("views", [0, 2])
def test_rounds_against_a_recount(mixed: ImageData, tmp_path: Path, views: int) -> None:
    made = method(mixed, feature_views=views, alpha=0.5)
    stages = run_stages(made, tmp_path)
    expected = ["contrast", "features-1", "round-1", "losses-1", "features-2", "round-2", "features-3", "round-3"]
    assert list(stages) == [name for name in expected if views or name not in ("features-2", "features-3")]

    assert mixed.unlabeled is not None
    labels = torch.cat([mixed.train.labels, mixed.unlabeled.labels])
    indices = torch.cat([mixed.train.indices, mixed.unlabeled.indices])
    for number in (1, 2, 3):
        z = read(tmp_path / f"features-{number if views else 1}" / TABLE)["embedding"]
        assert z.shape == (len(labels), 16)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(len(z)), rtol=0, atol=1e-5)
        known = labels >= 0
        pseudo = nearest_class(class_similarity(z[~known], z[known], labels[known], 4))
        stage = stages[f"round-{number}"]
        assert isinstance(stage, Fit)
        pool, objective = stage.data.unlabeled, stage.objective
        assert isinstance(objective, WeightedPseudoLabels)
        assert pool is not None
        assert torch.equal(pool.indices, indices[~known])
        assert torch.equal(pool.labels, pseudo.predicted())  # type: ignore[attr-defined]
        assert torch.equal(objective.weights[pool.indices], pseudo.weights)
        assert torch.equal(stage.data.train.indices, indices[known])
        assert torch.equal(stage.data.train.labels, labels[known])  # type: ignore[attr-defined]
        found = metrics(tmp_path, stage.name)
        truth = pool.hidden_labels  # type: ignore[attr-defined]
        assert found["unlabeled"] == len(pool)
        assert found["weight_auroc"] == pytest.approx(auc(pseudo.weights, truth >= 0))
        assert found["known_weight"] == pytest.approx(float(pseudo.weights[truth >= 0].mean()), rel=1e-5)
        assert found["unknown_weight"] == pytest.approx(float(pseudo.weights[truth < 0].mean()), rel=1e-5)
        assert found["pool_purity"] == pytest.approx(float((pseudo.predicted() == truth).double().mean()))
        if number == 1:
            assert "reliable_purity" not in found
            losses = read(tmp_path / "losses-1" / TABLE)["loss"]
            count = int(0.5 * 0.25 * len(pool))
            surest = largest(-losses, count)
            assert losses[surest].max() <= losses[~torch.isin(torch.arange(len(losses)), surest)].min()
            joined = torch.nonzero(~known)[:, 0][surest]
            labels[joined] = pseudo.predicted()[surest]
            right = float((labels[joined] == truth[surest]).double().mean())
        else:
            assert found["reliable_purity"] == pytest.approx(right)


def test_random_views_are_new_in_every_round(mixed: ImageData, tmp_path: Path) -> None:
    run_stages(method(mixed, feature_views=1), tmp_path)
    first, second = (read(tmp_path / f"features-{number}" / TABLE)["embedding"] for number in (1, 2))
    assert not torch.allclose(first, second, atol=1e-3)


def test_the_student_goes_on_and_the_teacher_stays(mixed: ImageData, tmp_path: Path) -> None:
    starts: dict[str, dict[str, torch.Tensor]] = {}

    def look(stage: Stage) -> None:
        if isinstance(stage, Fit):
            starts[stage.name] = {n: v.clone() for n, v in stage.objective.student.state_dict().items()}

    stages = run_stages(method(mixed), tmp_path, look=look)
    from limbeck.models import load

    for number in (1, 2):
        kept = load(tmp_path / f"round-{number}" / "model").state_dict()
        after = starts[f"round-{number + 1}"]
        assert all(torch.equal(kept[name], after[name]) for name in kept)
        assert not all(torch.equal(starts[f"round-{number}"][name], after[name]) for name in kept)
    first = stages["contrast"]
    assert isinstance(first, Fit)
    assert isinstance(first.objective, Contrastive)
    assert (first.objective.temperature, first.objective.view) == (0.5, "simclr_cifar")
    head = first.objective.student.head
    assert [(part.in_features, part.out_features) for part in head.modules() if isinstance(part, torch.nn.Linear)] == [
        (64, 64),
        (64, 16),
    ]
    assert not any(isinstance(part, torch.nn.BatchNorm1d) for part in head.modules())
    scored = stages["features-1"]
    assert isinstance(scored, Score)
    teacher = load(tmp_path / "contrast" / "model").state_dict()
    now = scored.scorer.model.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(teacher[name], now[name]) for name in teacher)  # type: ignore[index]


def test_weights_of_one_are_plain_pseudo_labels(mixed: ImageData, tmp_path: Path) -> None:
    stages = run_stages(method(mixed, weights="one", rounds=1), tmp_path)
    assert list(stages) == ["contrast", "features-1", "round-1", "round-2"]
    stage = stages["round-1"]
    assert isinstance(stage, Fit)
    assert isinstance(stage.objective, WeightedPseudoLabels)
    assert stage.data.unlabeled is not None
    assert bool((stage.objective.weights[stage.data.unlabeled.indices] == 1).all())
    # What is reported is the margin, whatever is trained with.
    assert 0 < metrics(tmp_path, "round-1")["known_weight"] < 1


def test_the_student_sees_whitened_images(mixed: ImageData, tmp_path: Path) -> None:
    """Of all images, labelled or not, once; the teacher sees them as they are."""
    stages = run_stages(method(mixed, rounds=1, preprocessing="gcn_zca"), tmp_path)
    assert mixed.unlabeled is not None
    expected = Whitening(64)
    expected.fit(part["image"] for part in eval_batches(concat([mixed.train, mixed.unlabeled]), 1000))
    for number in (1, 2):
        stage = stages[f"round-{number}"]
        assert isinstance(stage, Fit)
        (found,) = (part for part in stage.objective.student.modules() if isinstance(part, Whitening))
        torch.testing.assert_close(found.matrix, expected.matrix, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-6)
    first = stages["contrast"]
    assert isinstance(first, Fit)
    assert not any(isinstance(part, Whitening) for part in first.objective.modules())


def test_images_whose_truth_is_not_known(mixed: ImageData, tmp_path: Path) -> None:
    import dataclasses

    assert mixed.unlabeled is not None
    blind = type(mixed.unlabeled)(**{**mixed.unlabeled.arguments, "hidden_labels": None})
    run_stages(method(dataclasses.replace(mixed, unlabeled=blind)), tmp_path)
    found = metrics(tmp_path, "round-3")
    assert found["unlabeled"] < len(blind)
    assert not {"pool_purity", "reliable_purity", "weight_auroc"} & found.keys()


def test_weights_tell_known_from_unknown_digits(mixed: ImageData, tmp_path: Path) -> None:
    long = FitSettings(
        updates=80, batch_size=128, accelerator="cpu", evaluations=1, optimizer={"name": "adam", "lr": 5e-3}
    )
    run_stages(method(mixed, long, view="crop@0.6-1", rounds=1), tmp_path)
    found = metrics(tmp_path, "round-1")
    assert found["weight_auroc"] > 0.55  # of several hundred images: chance is 0.5 +- 0.02
    assert found["known_weight"] > found["unknown_weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.5}, "alpha is 1.5, rounds 2"),
        ({"rounds": 0}, "rounds 0"),
        ({"power": 0.0}, "power 0.0"),
        ({"feature_views": -1}, "feature_views -1"),
        ({"view": "none"}, "two different readings"),
        ({"pretraining_temperature": -0.5}, "temperature is -0.5"),
    ],
)
def test_wrong_input(mixed: ImageData, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        method(mixed, **changes)


def test_unlabelled_images_are_needed(digits: ImageData) -> None:
    with pytest.raises(LimbeckError, match="see data class_mismatch"):
        method(digits)
