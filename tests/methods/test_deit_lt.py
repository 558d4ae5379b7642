import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.long_tailed.deit_lt import DeiTLT
from limbeck.models import Classifier, build
from limbeck.models.experts import ExpertClassifier, ExpertOutput
from limbeck.stages.objective import Plan, Terms
from limbeck.teachers.frozen import Frozen
from tests.methods.tables import Floats, Table, batch, fit, log_softmax, onehot, student, total, value

FEW = settings(max_examples=25, deadline=None)
CLASSES = 3
TOKENS = arrays(np.float64, (4, 2, CLASSES), elements=st.floats(-10, 10))
TEACHER = arrays(np.float64, (4, CLASSES), elements=st.floats(-10, 10))
LABELS = st.lists(st.integers(0, CLASSES - 1), min_size=4, max_size=4)
COUNTS = (1000, 100, 10)
WEIGHTS = np.array([1e-4 / (1 - 0.9999**n) for n in COUNTS])
PLAIN: dict[str, Any] = {"mixup_alpha": 0, "cutmix_alpha": 0}


class Tokens(nn.Module):
    """Says of image ``i`` row ``i`` of the logits [N, E, C], in float64; mixed images get mixed rows."""

    def __init__(self, logits: Floats) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> ExpertOutput:
        self.seen.append(images.detach().clone())
        said = torch.einsum("bn,nec->bec", images.flatten(1).double(), self.logits)
        return ExpertOutput(said, said)


class Spy(Table):
    """A teacher that remembers what it was shown."""

    def __init__(self, logits: Floats) -> None:
        super().__init__(logits)
        self.seen: list[Tensor] = []

    def forward(self, batch: Any) -> Any:
        self.seen.append(batch["image"].clone())
        return super().forward(batch)


def known(z: Floats, teacher: Floats, counts: tuple[int, ...] = COUNTS, **arguments: Any) -> tuple[DeiTLT, Spy]:
    names = ["cls", "dist"][: z.shape[1]]
    network = ExpertClassifier(Tokens(z), [str(c) for c in range(z.shape[2])], names, channels=1)
    spy = Spy(teacher)
    objective = DeiTLT(network, Frozen(spy), **{"drw_epoch": 10, **arguments})
    objective.begin(Plan(num_samples=4, num_classes=z.shape[2], updates=1, epochs=1, class_counts=counts))
    return objective, spy


def items(terms: Terms) -> dict[str, float]:
    return {name: value(term).item() for name, term in terms.items()}


def gradient(objective: DeiTLT) -> Floats:
    found = objective.student.body.logits.grad
    assert found is not None
    numbers: Floats = found.numpy()
    return numbers


@FEW
@given(TOKENS, TEACHER, LABELS, st.floats(0.05, 0.95), st.floats(0, 1), st.sampled_from([0, 9, 10, 30]))
def test_equations(z: Floats, teacher: Floats, labels: list[int], alpha: float, smoothing: float, epoch: int) -> None:
    objective, spy = known(z, teacher, alpha=alpha, label_smoothing=smoothing, **PLAIN)
    terms = objective.terms(batch(labels, epoch=epoch))
    total(terms).backward()
    said = teacher.argmax(-1)
    hard, soft = onehot(list(said), CLASSES), onehot(labels, CLASSES)
    weights = np.ones(4)
    if epoch >= 10:
        weights = WEIGHTS[said]
    else:
        soft = (1 - smoothing) * soft + smoothing / CLASSES
    weights = weights / weights.sum()
    log_q = log_softmax(z)
    expected = {
        "cls": -(1 - alpha) * (soft * log_q[:, 0]).sum(-1).mean(),
        "dist": -alpha * (weights * (hard * log_q[:, 1]).sum(-1)).sum(),
    }
    # Class weights and smoothed labels are float32.
    assert items(terms) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    q = np.exp(log_q)
    np.testing.assert_allclose(gradient(objective)[:, 0], (1 - alpha) * (q[:, 0] - soft) / 4, atol=1e-6)
    np.testing.assert_allclose(gradient(objective)[:, 1], alpha * weights[:, None] * (q[:, 1] - hard), atol=1e-6)
    assert spy.weight.grad is None


def test_alpha_0_and_1() -> None:
    z, teacher = np.random.default_rng(0).normal(size=(4, 2, 3)), np.random.default_rng(1).normal(size=(4, 3))
    alone, spy = known(z, teacher, alpha=0.0, **PLAIN)
    total(alone.terms(batch([0, 1, 2, 0]))).backward()
    assert gradient(alone)[:, 0].any()
    assert not gradient(alone)[:, 1].any()
    assert spy.seen == []
    # A student without a distillation token is the same transformer.
    single, _ = known(z[:, :1], teacher, alpha=0.0, **PLAIN)
    total(single.terms(batch([0, 1, 2, 0]))).backward()
    np.testing.assert_array_equal(gradient(single)[:, 0], gradient(alone)[:, 0])
    distilled, _ = known(z, teacher, alpha=1.0, **PLAIN)
    terms = distilled.terms(batch([0, 1, 2, 0]))
    total(terms).backward()
    assert set(terms) == {"dist"}
    assert not gradient(distilled)[:, 0].any()
    assert gradient(distilled)[:, 1].any()


def test_a_teacher_that_tells_the_truth_gives_cross_entropy_on_it() -> None:
    z, labels = np.random.default_rng(2).normal(size=(4, 2, 3)), [0, 1, 2, 0]
    objective, _ = known(z, 5 * onehot(labels, 3), **PLAIN)
    found = items(objective.terms(batch(labels)))["dist"]
    assert found == pytest.approx(-0.5 * (onehot(labels, 3) * log_softmax(z[:, 1])).sum(-1).mean())


def test_class_weights_wait_for_their_epoch() -> None:
    z, teacher = np.random.default_rng(3).normal(size=(4, 2, 3)), np.random.default_rng(4).normal(size=(4, 3))
    found = {}
    for counts in ((500, 50, 5), (7, 7, 7)):
        objective, _ = known(z, teacher, counts, **PLAIN)
        found[counts] = [items(objective.terms(batch([0, 1, 2, 0], epoch=epoch))) for epoch in (9, 10)]
    (early, late), (equal_early, equal_late) = found.values()
    assert early == equal_early
    assert late["dist"] != pytest.approx(equal_late["dist"])
    # Of equal classes there is nothing to weigh.
    assert equal_late["dist"] == pytest.approx(equal_early["dist"], rel=1e-6)
    never, _ = known(z, teacher, drw_epoch=None, **PLAIN)
    assert items(never.terms(batch([0, 1, 2, 0], epoch=10**6))) == pytest.approx(early)


def test_a_batch_that_begins_before_is_not_reweighted() -> None:
    objective, _ = known(np.zeros((4, 2, 3)), np.zeros((4, 3)))
    both = batch([0, 1, 2, 0])
    assert not objective.deferred({**both, "epoch": torch.tensor([9, 9, 10, 10])})
    assert objective.deferred({**both, "epoch": torch.tensor([10, 10, 10, 11])})


@pytest.mark.parametrize("alphas", [{"mixup_alpha": 0.8, "cutmix_alpha": 0}, {}])
def test_the_teacher_sees_the_very_images_of_the_student(alphas: dict[str, Any]) -> None:
    z, teacher = np.random.default_rng(5).normal(size=(4, 2, 3)), np.random.default_rng(6).normal(size=(4, 3))
    objective, spy = known(z, teacher, label_smoothing=0.0, **alphas)
    plain = batch([0, 1, 2, 0])
    found = []
    for seed in range(8):
        torch.manual_seed(seed)
        found.append(items(objective.terms(plain)))
    seen = objective.student.body.seen
    assert len(seen) == len(spy.seen) == 8
    assert all(torch.equal(one, other) for one, other in zip(seen, spy.seen, strict=True))
    assert any(not torch.equal(images, plain["image"]) for images in seen)
    # Image i is one-hot: how much of each image is in a mixed one is how much of its label.
    for images, terms in zip(seen, found, strict=True):
        shares = images.flatten(1).double().numpy()
        if alphas.get("cutmix_alpha") == 0:
            soft = shares @ onehot([0, 1, 2, 0], 3)
            expected = -0.5 * (soft * log_softmax(np.einsum("bn,nc->bc", shares, z[:, 0]))).sum(-1).mean()
            assert terms["cls"] == pytest.approx(expected, rel=1e-5)
    # While the second token is re-weighted images are mixed no more, unless asked.
    objective.terms(batch([0, 1, 2, 0], epoch=10))
    assert torch.equal(seen[-1], plain["image"])
    objective.drw_mix = True
    for seed in range(8):
        torch.manual_seed(seed)
        objective.terms(batch([0, 1, 2, 0], epoch=10))
    assert any(not torch.equal(images, plain["image"]) for images in seen[-8:])


def test_watches_the_tokens() -> None:
    z, teacher = np.random.default_rng(7).normal(size=(4, 2, 3)), np.random.default_rng(8).normal(size=(4, 3))
    objective, _ = known(z, teacher, **PLAIN)
    objective.terms(batch([0, 1, 2, 0]))
    cosines = (z[:, 0] * z[:, 1]).sum(-1) / np.sqrt((z[:, 0] ** 2).sum(-1) * (z[:, 1] ** 2).sum(-1))
    assert value(objective.observed["token_cosine"][0]).item() == pytest.approx(cosines.mean())
    agrees = (z[:, 1].argmax(-1) == teacher.argmax(-1)).mean()
    assert value(objective.observed["teacher_agreement"][0]).item() == pytest.approx(agrees)


def test_without_a_label_the_class_token_learns_nothing() -> None:
    z, teacher = np.random.default_rng(9).normal(size=(4, 2, 3)), np.random.default_rng(10).normal(size=(4, 3))
    objective, _ = known(z, teacher, **PLAIN)
    total(objective.terms(batch([0, -1, 2, 0]))).backward()
    assert [bool(row.any()) for row in gradient(objective)[:, 0]] == [True, False, True, True]
    assert all(row.any() for row in gradient(objective)[:, 1])


def tiny(data: ImageData, **options: Any) -> ExpertClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"patch": 2, "width": 32, "depth": 2, "heads": 2, "drop_path": 0.0}
        made = build("vit", data.task, **sizes, distillation_token=True, **options)
    assert isinstance(made, ExpertClassifier)
    return made


def test_learns_the_tail_from_its_second_token(nearest_mean: Classifier, tmp_path: Path) -> None:
    """A teacher that knows all classes teaches the rare ones, of which there are few labels."""
    data = load("digits", seed=0, view="weak", imbalance=20)
    assert isinstance(data, ImageData)
    objective = DeiTLT(tiny(data), Frozen(nearest_mean), drw_epoch=25)
    adam = {"name": "adamw", "lr": 2e-3}
    fit(objective, data, tmp_path, updates=300, optimizer=adam, decay_biases=False)
    metrics = json.loads((tmp_path / "fit" / "result.json").read_text())["metrics"]
    assert metrics["dist/accuracy_few"] > metrics["cls/accuracy_few"]
    assert metrics["teacher/accuracy"] > 0.85
    assert metrics["accuracy"] > 0.25


def test_wrong_input(digits: ImageData) -> None:
    teacher = Frozen(student(digits))
    with pytest.raises(LimbeckError, match=r"alpha is 1\.5"):
        DeiTLT(tiny(digits), teacher, alpha=1.5)
    with pytest.raises(LimbeckError, match="beta is 2"):
        DeiTLT(tiny(digits), teacher, beta=2)
    with pytest.raises(LimbeckError, match="cutmix_alpha -1"):
        DeiTLT(tiny(digits), teacher, cutmix_alpha=-1)
    with pytest.raises(LimbeckError, match=r"deit-lt trains 2 experts, and its student has none; .*distillation_token"):
        DeiTLT(student(digits), teacher)  # type: ignore[arg-type]
    single, _ = known(np.zeros((1, 1, 3)), np.zeros((1, 3)), alpha=0.0)
    with pytest.raises(LimbeckError, match="its student has 1"):
        DeiTLT(single.student, teacher)
