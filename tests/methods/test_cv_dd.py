"""SRe2L and CV-DD: the recovery, the votes, and whole runs on digits."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy
from limbeck.losses.statistics import StatisticsMatching
from limbeck.methods.dataset.cv_dd import CVDD, ballot
from limbeck.methods.dataset.recovery import Recovery
from limbeck.methods.dataset.sre2l import PostEvaluation, SRe2L
from limbeck.methods.method import Ready
from limbeck.models.classifier import Classifier
from limbeck.stages.pixels import PixelSettings
from limbeck.stages.progress import Reporter
from limbeck.stages.schedule import cosine
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, drive
from tests.methods.tables import Table, batch, student, total
from tests.stages.test_label import KillAt, KilledError

FIT = FitSettings(updates=12, batch_size=8, accumulate=2, accelerator="cpu", evaluations=1)
SMALL: dict[str, Any] = {"ipc": 2, "iterations": 6, "jitter": 1, "view": "weak", "storage": "float32"}


def networks(data: ImageData, count: int = 2) -> list[Classifier]:
    """With running statistics of the data."""
    made = [student(data, seed=seed) for seed in range(count)]
    for network in made:
        for _ in range(5):
            network.train()(data.train.fetch(torch.arange(64)))
    return [network.eval() for network in made]


def recovery(data: ImageData, voters: list[Classifier], weights: torch.Tensor, **options: Any) -> Recovery:
    torch.manual_seed(0)
    return Recovery(data, voters, weights, PixelSettings(iterations=5, jitter=1), **options)


def make(maker: Recovery, number: int = 0) -> torch.Tensor:
    torch.manual_seed(1)
    return maker.make(number, torch.device("cpu"), lambda step, terms: None)


def test_terms_are_the_weighted_sum_over_the_voters(digits: ImageData) -> None:
    voters = networks(digits, 3)
    weights = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 1.0]])
    maker = recovery(digits, voters, weights, alpha=0.05, first_bn=7.0, tv=0.1, l2=0.2)
    images, labels = digits.train.fetch(torch.arange(10))["image"], torch.arange(10)
    found = maker.terms(0, images, labels)
    ce = bn = 0.0
    for weight, voter in zip((0.2, 0.8), voters[:2], strict=True):
        with StatisticsMatching(voter, 7.0) as matching:
            ce += weight * cross_entropy(voter(images).logits, labels)
            bn += weight * 0.05 * matching.distance()
    torch.testing.assert_close(found["ce"], ce)
    torch.testing.assert_close(found["bn"], bn)
    assert set(found) == {"ce", "bn", "tv", "l2"}
    assert set(recovery(digits, voters, weights).terms(1, images, labels)) == {"ce", "bn"}
    assert not any(module._forward_pre_hooks for v in voters for m in [v.body[0]] for module in m.modules())


def test_one_voter_and_equal_twins_are_sre2l(digits: ImageData) -> None:
    """w = 1 is SRe2L, and so is a committee of the same network twice."""
    (voter,) = networks(digits, 1)
    alone = make(recovery(digits, [voter], torch.ones(1, 1)))
    silent = make(recovery(digits, [voter, networks(digits, 2)[1]], torch.tensor([[1.0, 0.0]])))
    assert torch.equal(alone, silent)
    twins = make(recovery(digits, [voter, voter], ballot([60.0, 60.0], 2, 1, 5.0)))
    # Two halves of a float32 gradient; Adam divides by its size.
    torch.testing.assert_close(twins, alone, atol=1e-3, rtol=0)


@pytest.mark.parametrize("init", ["noise", "patches", "images"])
def test_recovered_images_fit_better_and_lie_in_range(digits: ImageData, init: str) -> None:
    maker = recovery(digits, networks(digits), torch.full((2, 2), 0.5), init=init)
    maker.settings = PixelSettings(iterations=15, crop=False, flip=False, jitter=0)
    torch.manual_seed(1)
    losses: list[float] = []
    device = torch.device("cpu")
    images = maker.make(1, device, lambda step, terms: losses.append(sum(t.item() for t in terms.values())))
    assert images.shape == (10, 1, 8, 8)
    assert images.min() >= 0
    assert images.max() <= 1
    assert losses[-1] < losses[0]
    assert torch.equal(images, make(maker, 1))


def test_real_images_are_different_ones_of_the_class(digits: ImageData) -> None:
    maker = recovery(digits, networks(digits), torch.full((4, 2), 0.5), init="images")
    starts = torch.stack([maker.start(number) for number in range(4)])  # type: ignore[misc]
    train = digits.train.fetch(torch.arange(len(digits.train)))["image"].flatten(1)
    where = torch.cdist(starts.flatten(0, 1).flatten(1), train).argmin(1)
    assert len(set(where.tolist())) == 40
    assert torch.equal(train[where], starts.flatten(0, 1).flatten(1))
    assert torch.equal(digits.train.labels[where], torch.arange(10).repeat(4))


def test_patch_is_the_one_of_medium_difficulty(digits: ImageData) -> None:
    """Against the patches of one view after another, scored one by one."""
    from limbeck.data import views

    voters, weights = networks(digits), torch.tensor([[0.3, 0.7]])
    maker = recovery(digits, voters, weights, init="patches")
    torch.manual_seed(4)
    found = maker.start(0)
    torch.manual_seed(4)
    seed, rows = int(torch.randint(2**62, ())), maker.candidates[0]
    for label in range(10):
        patches, scores = [], []
        for place, row in enumerate(rows[label].tolist()):
            image = digits.train.fetch(torch.tensor([row]))["image"]
            assert digits.train.labels[row] == label
            at = torch.tensor([label * 5 + place])
            patches.append(views.apply("crop", image, seed=seed, epochs=at * 0, indices=at, flip=digits.flip))
            with torch.no_grad():
                scores.append(
                    sum(
                        w * -float(v(patches[-1]).logits.log_softmax(1)[0, label])
                        for w, v in zip((0.3, 0.7), voters, strict=True)
                    )
                )
        assert found is not None
        assert torch.equal(found[label], patches[int(np.argsort(scores)[2])][0])


def test_ballot() -> None:
    priors = [63.0, 65.3, 68.5, 67.6, 67.4]
    ten = ballot(priors, 2, 10, 5.0)
    assert [tuple(row.nonzero()[:, 0].tolist()) for row in ten][:5] == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2)]
    assert len({tuple(row.nonzero()[:, 0].tolist()) for row in ten}) == 10
    torch.testing.assert_close(ten.sum(1), torch.ones(10))
    assert ballot([64, 60.6], 2, 1, 5.0)[0].tolist() == pytest.approx([0.6637, 0.3363], abs=5e-5)
    assert ballot(priors, 2, 1, 5.0)[0].nonzero()[:, 0].tolist() == [2, 3]
    torch.testing.assert_close(ballot([1.0] * 4, 4, 3, 5.0)[0], torch.full((4,), 0.25))
    torch.manual_seed(0)
    fifty = ballot(priors, 2, 50, 5.0)
    assert (fifty > 0).sum(1).tolist() == [2] * 50
    assert len({tuple(row.nonzero()[:, 0].tolist()) for row in fifty}) > 5


def test_post_evaluation_is_the_divergence_without_tau_squared() -> None:
    logits, labels = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]), np.array([[2.0, 0.0, 0.0], [1.0, 1.0, -2.0]])
    some = {**batch([0, 1]), "logits": torch.tensor(labels)}
    found = total(PostEvaluation(Table(logits), temperature=5.0).terms(some)).item()
    p, q = (np.exp(z / 5) / np.exp(z / 5).sum(-1, keepdims=True) for z in (labels, logits))
    # float64 throughout; values of 0.01.
    assert found == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-10)


def test_smoothed_schedule() -> None:
    for eta, end in ((1.0, 0.0), (2.0, 0.5)):
        schedule = cosine(eta=eta)
        assert schedule(0, 300) == 1
        assert schedule(300, 300) == pytest.approx(end)
        assert schedule(120, 300) == pytest.approx(0.5 * (1 + np.cos(np.pi * 120 / (eta * 300))))
    with pytest.raises(LimbeckError, match=r"eta is 0\.5"):
        cosine(eta=0.5)


def test_networks_that_cannot_vote(digits: ImageData) -> None:
    with pytest.raises(LimbeckError, match="no batch normalisation"):
        recovery(digits, [student(digits, norm="group")], torch.ones(1, 1))
    other = dataclasses.replace(digits.task, classes=tuple("abcdefghij"))
    from limbeck.models import build

    with pytest.raises(LimbeckError, match="a network knows the classes"):
        recovery(digits, [build("cnn", other, width=2)], torch.ones(1, 1))  # type: ignore[list-item]
    few = dataclasses.replace(digits, train=digits.train.subset(range(60)))
    with pytest.raises(LimbeckError, match="images a class start from them"):
        recovery(few, networks(digits), torch.ones(40, 2), init="images")


def cvdd(data: ImageData, **changes: Any) -> CVDD:
    options = {"committee": [{"name": "cnn", "width": 2}, {"name": "cnn", "width": 3}], "priors": [60.0, 50.0]}
    squeeze = FitSettings(updates=10, batch_size=32, accelerator="cpu", evaluations=1)
    made = student(data, width=4)
    return CVDD(data=data, student=made, squeeze=squeeze, fit=FIT, **{**SMALL, **options, **changes})


def run(method: Any, folder: Path, reporter: Reporter | None = None) -> Context:
    context = Context(folder, "cv-dd", seed=0, reporter=reporter or Reporter(quiet=True))
    drive(method.program(), context)
    return context


def weights(folder: Path) -> bytes:
    return (folder / "fit/model/model.safetensors").read_bytes()


def test_whole_run_with_its_scores(digits: ImageData, tmp_path: Path) -> None:
    context = run(cvdd(digits, assess="all"), tmp_path)
    stages = ["squeeze-0", "squeeze-1", "recover", "real", "hard", "random", "random-relabel", "random-fit"]
    assert context.stages == [*stages, "relabel", "fit"]
    metrics = {s: json.loads((tmp_path / s / "result.json").read_text())["metrics"] for s in context.stages}
    last = metrics["fit"]
    assert last["hlr"] == pytest.approx(metrics["real"]["accuracy"] - metrics["hard"]["accuracy"])
    assert last["ior"] == pytest.approx(last["accuracy"] - metrics["random-fit"]["accuracy"])
    score = 0.5 * last["ior"] - 0.5 * last["hlr"]
    assert last["lrs"] == pytest.approx((np.exp(score) - np.exp(-1)) / (np.e - np.exp(-1)))
    assert last["verifier/nll"] > 0
    # The same again is found finished, whatever the order of the day.
    before = weights(tmp_path)
    run(cvdd(digits, assess="all"), tmp_path)
    assert weights(tmp_path) == before


@pytest.mark.parametrize(("stage", "at"), [("recover", 7), ("relabel", 5), ("fit", 6)])
def test_killed_run_ends_with_the_same_student(digits: ImageData, tmp_path: Path, stage: str, at: int) -> None:
    class KillIn(KillAt):
        def stage(self, name: str, done: int, total: int) -> Any:
            self.here = name == stage
            return super().stage(name, done, total)

        def advance(self, done: int, loss: float | None) -> None:
            if self.here:
                super().advance(done, loss)

    run(cvdd(digits), tmp_path / "whole")
    with pytest.raises(KilledError):
        run(cvdd(digits), tmp_path / "killed", KillIn(at))
    assert not (tmp_path / "killed" / stage / "result.json").exists()
    run(cvdd(digits), tmp_path / "killed")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_hidden_labels_are_not_read(digits: ImageData, tmp_path: Path) -> None:
    labels = digits.train.labels
    for name, hidden in (("true", labels), ("other", labels.roll(7))):
        twin = digits.train.relabel(labels)
        twin.hidden_labels = hidden
        run(cvdd(dataclasses.replace(digits, train=twin)), tmp_path / name)
    assert weights(tmp_path / "true") == weights(tmp_path / "other")


def test_priors_are_measured_where_they_are_not_given(digits: ImageData, tmp_path: Path) -> None:
    context = run(cvdd(digits, priors=None), tmp_path)
    alone = [f"prior-{n}-{stage}" for n in range(2) for stage in ("recover", "relabel", "fit")]
    assert context.stages == ["squeeze-0", "squeeze-1", *alone, "recover", "relabel", "fit"]


def test_saved_networks_are_not_squeezed_again(digits: ImageData, tmp_path: Path) -> None:
    run(cvdd(digits), tmp_path / "first")
    saved = [{"name": "folder", "path": str(tmp_path / f"first/squeeze-{n}/model")} for n in range(2)]
    context = run(cvdd(digits, committee=saved), tmp_path / "second")
    assert context.stages == ["recover", "relabel", "fit"]


def test_one_voter_is_sre2l(digits: ImageData, tmp_path: Path) -> None:
    run(cvdd(digits), tmp_path / "first")
    path = str(tmp_path / "first/squeeze-0/model")
    run(cvdd(digits, committee=[{"name": "folder", "path": path}], priors=[1.0], voters=1), tmp_path / "one")
    from limbeck.models import load

    teacher: Any = Ready(load(path))
    options = {**SMALL, "init": "patches", "labels": "batch"}
    run(SRe2L(digits, student(digits, width=4), teacher, FIT, **options), tmp_path / "sre2l")
    assert weights(tmp_path / "one") == weights(tmp_path / "sre2l")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voters": 3}, "voters is 3; it must lie between 1 and the 2"),
        ({"priors": [1.0]}, "1 priors for a committee of 2"),
        ({"label_temperature": 0.0}, "temperature of the priors is 0.0"),
        ({"committee": [{"width": 3}, {"name": "cnn"}]}, r"committee\[0\]"),
        ({"ipc": 0}, "ipc is 0"),
        ({"view": "crops"}, "Did you mean 'crop'"),
        ({"jitter": -1}, "jitter -1"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_trained(
    digits: ImageData, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(LimbeckError, match=message):
        cvdd(digits, **change)


def test_labels_of_a_batch_need_a_batch(digits: ImageData) -> None:
    with pytest.raises(LimbeckError, match=r"at least 2 images in each of fit\.accumulate 8"):
        SRe2L(digits, student(digits), nn.Identity(), dataclasses.replace(FIT, accumulate=8), labels="batch")  # type: ignore[arg-type]
