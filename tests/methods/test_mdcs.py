import dataclasses
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
from limbeck.methods.long_tailed.mdcs import MDCS
from limbeck.models import build
from limbeck.models.experts import ExpertClassifier, ExpertOutput
from limbeck.stages.evaluation.classification import measure_experts
from limbeck.stages.objective import Plan, Terms
from tests.methods.tables import Floats, batch, fit, kl, log_softmax, onehot, softmax, student, total, value

FEW = settings(max_examples=25, deadline=None)
BATCH, EXPERTS, CLASSES = 4, 3, 3
LOGITS = arrays(np.float64, (2 * BATCH, EXPERTS, CLASSES), elements=st.floats(-10, 10))
LABELS = st.lists(st.integers(0, CLASSES - 1), min_size=BATCH, max_size=BATCH)
COUNTS = st.tuples(*[st.integers(1, 1000)] * CLASSES)
LAMBDAS = np.array([-0.5, 1.0, 2.5])


class Tables(nn.Module):
    """Says of image ``i`` row ``i`` of the logits [N, E, C], in float64."""

    def __init__(self, logits: Floats) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: Tensor) -> ExpertOutput:
        said = torch.einsum("bn,nec->bec", images.flatten(1).double(), self.logits)
        return ExpertOutput(said, said)


def known(z: Floats, counts: tuple[int, ...] = (90, 9, 1), **arguments: Any) -> MDCS:
    names = [f"expert-{number}" for number in range(1, z.shape[1] + 1)]
    network = ExpertClassifier(Tables(z), [str(c) for c in range(z.shape[2])], names, channels=1)
    objective = MDCS(network, **arguments)
    objective.begin(Plan(num_samples=9, num_classes=z.shape[2], updates=1, epochs=1, class_counts=counts))
    return objective


def views(labels: list[int], epoch: int = 20) -> Any:
    """The first images are the weak views, the others the strong."""
    count = len(labels)
    weak = batch(labels, list(range(count)), of=2 * count, epoch=epoch)
    return {**weak, "strong": batch(labels, list(range(count, 2 * count)), of=2 * count)["image"]}


def adjusted(z: Floats, counts: tuple[int, ...], lambdas: Floats = LAMBDAS) -> Floats:
    found: Floats = z + lambdas[:, None] * np.log(np.asarray(counts, dtype=np.float64))
    return found


def items(terms: Terms) -> dict[str, float]:
    return {name: value(term).item() for name, term in terms.items()}


@FEW
@given(LOGITS, LABELS, COUNTS, st.floats(0.5, 5), st.floats(0.1, 2))
def test_equations_and_gradients(z: Floats, labels: list[int], counts: Any, T: float, weight: float) -> None:
    objective = known(z, counts, temperature=T, cs_weight=weight)
    terms = objective.terms(views(labels))
    total(terms).backward()
    a = adjusted(z, counts)
    truth = onehot(labels * 2, CLASSES)[:, None]
    expected = {"diversity": -(truth * log_softmax(a)).sum(-1).sum(1).mean()}
    gradient = (softmax(a) - truth) / (2 * BATCH)
    weak, strong = a[:BATCH], a[BATCH:]
    for e in range(EXPERTS):
        right = weak[:, e].argmax(-1) == labels
        values = T**2 * kl(weak[:, e], strong[:, e], T)
        expected[f"consistency/expert-{e + 1}"] = weight * values[right].mean() if right.any() else 0.0
        # Only where it is right, only to the strong view.
        pull = weight * T * (softmax(strong[:, e] / T) - softmax(weak[:, e] / T)) / max(1, right.sum())
        gradient[BATCH:, e] += right[:, None] * pull
    # The weight of the consistency is float32.
    assert items(terms) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    found = objective.student.body.logits.grad
    assert found is not None
    np.testing.assert_allclose(found.numpy(), gradient, rtol=1e-6, atol=1e-6)


def test_worked_example() -> None:
    """Counts (90, 10) and equal logits: the experts start from (.25, .75), (.9, .1) and (243 / 244, 1 / 244)."""
    terms = known(np.zeros((2, 3, 2)), (90, 10), cs_weight=0).terms(views([1]))
    assert items(terms) == {"diversity": pytest.approx(-np.log(0.75) - np.log(0.1) + np.log(244))}


@FEW
@given(LOGITS, LABELS, st.integers(1, 1000))
def test_of_equal_classes_every_expert_has_cross_entropy(z: Floats, labels: list[int], count: int) -> None:
    truth = onehot(labels * 2, CLASSES)[:, None]
    plain = -(truth * log_softmax(z)).sum(-1).sum(1).mean()
    for lambdas in (LAMBDAS.tolist(), [0.0, 7.0, -3.0]):
        terms = known(z, (count,) * 3, lambdas=lambdas, cs_weight=0).terms(views(labels))
        assert items(terms) == {"diversity": pytest.approx(plain, abs=1e-9)}


@FEW
@given(LOGITS, LABELS, COUNTS)
def test_only_ratios_of_the_counts_matter(z: Floats, labels: list[int], counts: Any) -> None:
    once, often = (known(z, tuple(k * c for c in counts)).terms(views(labels)) for k in (1, 50))
    assert items(once) == pytest.approx(items(often), abs=1e-6)


def test_equal_views_agree() -> None:
    z = np.random.default_rng(0).normal(size=(BATCH, EXPERTS, CLASSES))
    terms = items(known(np.concatenate([z, z])).terms(views([0, 0, 1, 2])))
    assert [value for name, value in terms.items() if name.startswith("consistency")] == pytest.approx(
        [0] * 3, abs=1e-15
    )


def test_where_nothing_is_right_nothing_is_learned() -> None:
    z = np.zeros((4, 3, 2))
    z[:2, :, 0] = 1e4  # certain and wrong
    objective = known(z, (5, 5))
    terms = objective.terms(views([1, 1]))
    consistency = [value(term) for name, term in terms.items() if name.startswith("consistency")]
    assert [float(term.detach()) for term in consistency] == [0, 0, 0]
    torch.stack(consistency).sum().backward()
    assert not objective.student.body.logits.grad.any()


def test_weight_grows_over_the_warm_up() -> None:
    objective = known(np.zeros((2, 3, 3)))
    assert objective.strength(torch.tensor([0, 5, 10, 20, 300])).tolist() == pytest.approx([0, 0.15, 0.3, 0.6, 0.6])
    assert known(np.zeros((2, 3, 3)), cs_warmup=0).strength(torch.tensor([0, 7])).tolist() == pytest.approx([0.6, 0.6])
    z = np.random.default_rng(1).normal(size=(2, 3, 3)) + np.array([9, 0, 0])  # all are right
    half, full = (items(known(z).terms(views([0], epoch))) for epoch in (10, 40))
    for name in (name for name in full if name.startswith("consistency")):
        assert half[name] == pytest.approx(full[name] / 2)
        assert full[name] > 0


def test_without_a_label_nothing_counts() -> None:
    z = np.random.default_rng(2).normal(size=(8, 3, 3))
    found = items(known(z).terms(views([0, 1, -1, -1])))
    kept = z[[0, 1, 4, 5]]
    assert found == pytest.approx(items(known(kept).terms(views([0, 1]))), abs=1e-12)


def test_watches_the_views() -> None:
    z = np.random.default_rng(3).normal(size=(8, 3, 3))
    objective = known(z)
    labels = [0, 1, 2, 0]
    objective.terms(views(labels))
    right = adjusted(z, (90, 9, 1))[:4].argmax(-1) == np.array(labels)[:, None]
    assert value(objective.observed["confident"][0]).item() == pytest.approx(right.mean())
    apart = kl(z[:4].mean(1), z[4:].mean(1)).mean()
    assert value(objective.observed["view_kl"][0]).item() == pytest.approx(apart)
    objective.finish({})
    assert objective.summary() == {"view_kl": pytest.approx(apart, rel=1e-6)}


def long_tail() -> ImageData:
    data = load("digits", seed=0, view="weak", imbalance=20)
    assert isinstance(data, ImageData)
    return data


def experts(data: ImageData, seed: int = 0) -> ExpertClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build("expert_cnn", data.task, width=8, hidden=32)
    assert isinstance(made, ExpertClassifier)
    return made


def test_experts_have_a_focus_and_each_is_reported(tmp_path: Path) -> None:
    """The larger lambda, the better on rare classes and the worse on frequent ones."""
    data = long_tail()
    objective = MDCS(experts(data), cs_warmup=1)
    fit(objective, data, tmp_path, updates=150, optimizer={"name": "sgd", "lr": 0.05, "momentum": 0.9})
    metrics = json.loads((tmp_path / "fit" / "result.json").read_text())["metrics"]
    assert metrics["view_kl"] > 0
    rare = [metrics[f"expert-{e}/accuracy_few"] for e in (1, 2, 3)]
    assert rare[0] < rare[1] < rare[2]
    assert metrics["accuracy"] > metrics["expert-1/accuracy"]
    found, logits = measure_experts(objective.student.eval(), data)
    assert found == pytest.approx({name: metrics[name] for name in found})
    test = data.test.fetch(torch.arange(len(data.test)))
    with torch.no_grad():
        mean = objective.student(test).logits
    torch.testing.assert_close(torch.stack(list(logits.values())).mean(0), mean)
    # Which is how often each is right on the rarest class.
    last = test["label"] == 9
    recall = (logits["expert-3"].argmax(1) == 9)[last].float().mean()
    assert float(recall) > float((logits["expert-1"].argmax(1) == 9)[last].float().mean())


def test_wrong_input(digits: ImageData) -> None:
    three = experts(digits)
    with pytest.raises(LimbeckError, match=r"mdcs trains 2 experts, and its student has 3; .*experts: 2"):
        MDCS(three, lambdas=[0.0, 1.0])
    with pytest.raises(LimbeckError, match="its student has none"):
        MDCS(student(digits))  # type: ignore[arg-type]
    for wrong in ({"cs_weight": -1}, {"cs_warmup": -1}, {"temperature": 0}):
        with pytest.raises(LimbeckError, match=next(iter(wrong))):
            MDCS(three, **wrong)
    with pytest.raises(LimbeckError, match="'strong:2'"):
        MDCS(three).streams(dataclasses.replace(digits, view="strong"), 8, 0)
