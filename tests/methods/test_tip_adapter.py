"""Tip-Adapter: keys recounted, what trains, and which pair answers."""

import copy
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck
from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.data.views import apply
from limbeck.errors import LimbeckError
from limbeck.methods.classification.prototypes import Prototypes
from limbeck.methods.classification.tip_adapter import ALPHAS, BETAS, TipAdapter
from limbeck.methods.method import Ready
from limbeck.models import load as load_model
from limbeck.models.cached import cache_of
from limbeck.models.classifier import Classifier
from limbeck.models.model import Model
from limbeck.stages.evaluation import predict_logits
from limbeck.stages.fit import Fit
from limbeck.stages.score import TABLE, read
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from tests.methods.programs import run_stages
from tests.methods.tables import student

ADAMW = {"name": "adamw", "lr": 1e-2, "eps": 1e-4}


@pytest.fixture(scope="module")
def few() -> ImageData:
    data = load("digits", seed=0, view="weak", labels_per_class=5)
    assert isinstance(data, ImageData)
    return data


def settings(**given: Any) -> FitSettings:
    return FitSettings(**{"updates": 20, "batch_size": 50, "accelerator": "cpu", "optimizer": ADAMW, **given})


def run(data: ImageData, folder: Path, fit: FitSettings | None = None, **given: Any) -> tuple[Classifier, Fit]:
    stages = run_stages(TipAdapter(data, Ready(student(data)), fit or settings(), **given), folder)
    assert list(stages) == ["cache", "fit"]
    stage = stages["fit"]
    assert isinstance(stage, Fit)
    model = load_model(folder / "fit" / "model")
    assert isinstance(model, Classifier)
    return model, stage


def features(data: ImageData, images: torch.Tensor) -> torch.Tensor:
    found = student(data).eval()(images).features
    assert found is not None
    return found.detach()


@pytest.mark.parametrize("views", [0, 3])
def test_keys_are_directions_of_mean_features(few: ImageData, tmp_path: Path, views: int) -> None:
    still = settings(optimizer={"name": "adamw", "lr": 0.0})
    model, _ = run(few, tmp_path, still, views=views, search=False)
    batch = few.train.fetch(torch.arange(50))
    if views == 0:
        total = features(few, batch["image"])
    else:
        # The seed is the method's own; whatever it is, views are different and their mean is as short as that makes it.
        total = read(tmp_path / "cache" / TABLE)["embedding"]
        once = torch.nn.functional.normalize(features(few, batch["image"]), dim=-1)
        cosines = (once * total).sum(-1)
        assert cosines.min() > 0.3
        assert cosines.max() < 0.9999
    keys = total / total.norm(dim=1, keepdim=True)
    cache = cache_of(model)
    torch.testing.assert_close(cache.keys.detach(), keys, rtol=0, atol=1e-5)
    assert torch.equal(cache.labels, few.train.labels)
    # With a learning rate of 0 nothing is trained: the network's answer and the cache's, of the images as they are.
    test = few.test.fetch(torch.arange(40))["image"]
    v = features(few, test)
    cosines = v @ cache.keys.detach().T / v.norm(dim=1, keepdim=True)
    votes = torch.exp(-5.5 * (1 - cosines)) @ torch.eye(10)[cache.labels]
    torch.testing.assert_close(model(test).logits, student(few).eval()(test).logits + votes, rtol=1e-4, atol=1e-4)


def test_views_are_those_of_the_scorer(few: ImageData, tmp_path: Path) -> None:
    """Features count by their length: the mean is taken before it is brought to length 1."""
    stages = run_stages(TipAdapter(few, Ready(student(few)), settings(), views=2), tmp_path)
    scorer = stages["cache"].scorer
    batch = few.train.fetch(torch.arange(50))
    seen = [
        apply("weak", batch["image"], seed=scorer.seed, epochs=torch.full((50,), n), indices=batch["index"], flip=False)
        for n in (0, 1)
    ]
    expected = torch.nn.functional.normalize(sum(features(few, views) for views in seen), dim=-1)
    torch.testing.assert_close(read(tmp_path / "cache" / TABLE)["embedding"], expected, rtol=0, atol=1e-5)


def test_images_without_labels_are_not_cached(few: ImageData, tmp_path: Path) -> None:
    labels = few.train.labels.clone()
    labels[::3] = -1
    model, _ = run(dataclasses.replace(few, train=few.train.relabel(labels)), tmp_path, views=0)
    assert torch.equal(cache_of(model).labels, labels[labels >= 0])


def test_only_keys_are_trained(few: ImageData, tmp_path: Path) -> None:
    model, stage = run(few, tmp_path, views=0)
    assert [name for name, p in stage.objective.named_parameters() if p.requires_grad] == [
        f"student.body.{stage.objective.student.head}.keys"
    ]
    before, after = student(few).state_dict(), model.state_dict()
    renamed = {name.replace("body.6.head.", "body.6."): value for name, value in after.items()}
    assert all(torch.equal(renamed[name], value) for name, value in before.items())
    start = read(tmp_path / "cache" / TABLE)["embedding"]
    assert not torch.allclose(cache_of(model).keys, start, atol=1e-3)


def test_training_lowers_the_loss(few: ImageData, tmp_path: Path) -> None:
    log: dict[float, float] = {}
    for rate in (0.0, 1e-2):
        model, _ = run(few, tmp_path / str(rate), settings(optimizer={**ADAMW, "lr": rate}), search=False)
        logits = predict_logits(model, few.train).logits
        log[rate] = float(torch.nn.functional.cross_entropy(logits, few.train.labels))
    assert log[1e-2] < 0.8 * log[0.0]


def test_pair_is_the_best_of_the_grid(few: ImageData, tmp_path: Path) -> None:
    model, _ = run(few, tmp_path)
    cache = cache_of(model)
    samples = few.validation
    images = samples.fetch(torch.arange(len(samples)))["image"]
    v = features(few, images)
    tried = []
    for beta, alpha in itertools.product(BETAS, ALPHAS):
        right = cache.answer(v, alpha, beta).argmax(-1) == samples.labels
        tried.append((float(right.double().mean()), -beta, -alpha))
    best, beta, alpha = max(tried)
    found = json.loads((tmp_path / "fit" / "result.json").read_text(encoding="utf-8"))["metrics"]
    assert (found["alpha"], found["beta"]) == (pytest.approx(-alpha), pytest.approx(-beta))
    assert found["validation/accuracy"] == pytest.approx(best)
    plain = predict_logits(student(few), few.test).logits.argmax(-1) == few.test.labels
    assert found["network/accuracy"] == pytest.approx(float(plain.double().mean()))


def test_search_is_not_what_keys_are_trained_with(few: ImageData, tmp_path: Path) -> None:
    """Evaluations on the way choose pairs; the keys are the same without any."""
    kept = []
    for number, given in enumerate(({"evaluations": 5}, {"evaluations": 0})):
        kept.append(run(few, tmp_path / str(number), settings(**given))[0])
    assert torch.equal(cache_of(kept[0]).keys, cache_of(kept[1]).keys)


def test_grid() -> None:
    assert (len(ALPHAS), ALPHAS[0], ALPHAS[-1]) == (20, 0.1, pytest.approx(2.855))
    assert (len(BETAS), BETAS[0], BETAS[-1]) == (200, 0.1, pytest.approx(6.9655))


@pytest.mark.parametrize("changes", [{"alpha": -1.0}, {"beta": 0.0}, {"views": -1}])
def test_refuses_numbers(few: ImageData, changes: dict[str, Any]) -> None:
    (name, value) = next(iter(changes.items()))
    with pytest.raises(LimbeckError, match=f"{name} is {value}|{name} {value}"):
        TipAdapter(few, Ready(student(few)), settings(), **changes)


@pytest.mark.parametrize("method", ["tip-adapter", "prototypes"])
def test_what_it_teaches_is_checked_before_the_network_is_trained(method: str, tmp_path: Path) -> None:
    short: dict[str, Any] = {"student": {"name": "cnn", "width": 4}, "fit": {"updates": 2}}
    teacher = {"method": method, "network": {"method": "supervised", **short}, "fit": {"updates": 2}}
    data = {"name": "digits", "labels_per_class": 5}
    with pytest.raises(LimbeckError, match="temperatures must be above 0"):
        limbeck.run({"method": "dho", "data": data, "teacher": teacher, "T": -1.0, **short}, out=tmp_path, quiet=True)
    assert not list(tmp_path.glob("*/seed-0/*/"))


@pytest.mark.parametrize("method", [TipAdapter, Prototypes])
def test_networks_are_refused_before_they_are_trained(few: ImageData, method: type, tmp_path: Path) -> None:
    class Untrained:
        def sketch(self) -> Model:
            return Model(None)

        def program(self) -> Program:
            raise AssertionError("it was trained")

    with pytest.raises(LimbeckError, match="network is a Model"):
        run_stages(method(few, Untrained(), settings()), tmp_path)


def test_refuses_networks(few: ImageData, tmp_path: Path) -> None:
    other = copy.copy(student(few))
    other.classes = ("a", "b")
    with pytest.raises(LimbeckError, match="network is one of \\('a', 'b'\\)"):
        run_stages(TipAdapter(few, Ready(other), settings()), tmp_path)
    with pytest.raises(LimbeckError, match="network is a Model"):
        run_stages(TipAdapter(few, Ready(Model(None)), settings()), tmp_path)
    headless = Classifier(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.AdaptiveAvgPool1d(10)), few.classes, channels=1
    )
    with pytest.raises(LimbeckError, match="no head whose input could be its features"):
        run_stages(TipAdapter(few, Ready(headless), settings()), tmp_path)
