import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.data.clients import ClientData
from limbeck.data.load import load
from limbeck.data.random import derive
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.methods.federated.fedavg import FedAvg, LabeledWork
from limbeck.methods.federated.fedlabel import VIEW, FedLabel, FedLabelWork
from limbeck.models import build
from limbeck.models.classifier import Classifier
from limbeck.stages.federate import Federate
from limbeck.stages.stage import Context, drive


def work(tau: int = 3, tau_unlabeled: int = 3, **options: Any) -> FedLabelWork:
    settings = {
        "beta": 0.0,
        "lambda_0": 1.0,
        "confidence": "variance",
        "scores": "probabilities",
        "divergence": "reverse_kl",
        "teachers": "both",
        **options,
    }
    return FedLabelWork(LabeledWork(tau, 0.1, 8, 0.0), tau_unlabeled, **settings)


def logits(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows).log()


@pytest.fixture(scope="module")
def data() -> ClientData:
    found = load("clients", 0, clients=4, alpha=1.0, labeled=0.3, dataset={"name": "digits", "view": "none"})
    assert isinstance(found, ClientData)
    return found


@pytest.fixture
def model(data: ClientData) -> Classifier:
    torch.manual_seed(0)
    made = build("mlp", data.task, hidden=8, layers=1)
    assert isinstance(made, Classifier)
    return made


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_the_surer_teacher_gives_the_label_and_the_other_counts_where_it_agrees() -> None:
    local = logits([[0.7, 0.3], [0.7, 0.3]])
    received = logits([[0.4, 0.6], [0.6, 0.4]])
    label, accepted, discarded, weight = work().select(local, received)
    assert label.tolist() == [0, 0]
    assert accepted.tolist() == [1, 1]
    assert torch.equal(discarded, received)
    # float32 variances of 0.04 and 0.01 are exact to about 1e-7.
    assert weight.tolist() == pytest.approx([0.0, 0.25], abs=1e-5)


def test_the_threshold_looks_at_the_chosen_teacher_only() -> None:
    local, received = logits([[0.55, 0.45], [0.95, 0.05]]), logits([[0.1, 0.9], [0.5, 0.5]])
    _, accepted, _, _ = work(beta=0.92).select(local, received)
    assert accepted.tolist() == [0, 1]


def test_what_is_looked_at_may_choose_another_teacher() -> None:
    local, received = torch.tensor([[10.0, 9.0, -30.0]]), torch.tensor([[4.0, 0.0, 0.0]])
    assert work().select(local, received)[0].item() == 0
    chosen = {scores: work(scores=scores).select(local, received)[2] for scores in ("probabilities", "logits")}
    assert torch.equal(chosen["probabilities"], local)
    assert torch.equal(chosen["logits"], received)


@pytest.mark.parametrize(("teachers", "label"), [("local", 0), ("global", 1)])
def test_one_teacher_alone(teachers: str, label: int) -> None:
    found = work(teachers=teachers).select(logits([[0.7, 0.3]]), logits([[0.2, 0.8]]))
    assert found[0].item() == label
    assert found[3].item() == 0


def _numpy_loss(student: Any, plain: Any, local: Any, received: Any, beta: float, lambda_0: float) -> float:
    """Equation 8, sample by sample in float64."""
    total = 0.0
    for z_a, z, z_l, z_g in zip(
        *(np.asarray(x, dtype=np.float64) for x in (student, plain, local, received)), strict=True
    ):
        p = {name: np.exp(x) / np.exp(x).sum() for name, x in (("a", z_a), ("s", z), ("l", z_l), ("g", z_g))}
        h = {name: p[name].var() for name in "lg"}
        best, other = ("l", "g") if h["l"] >= h["g"] else ("g", "l")
        label = int(p[best].argmax())
        if p[best].max() <= beta:
            continue
        total -= math.log(p["a"][label])
        if int(p[other].argmax()) == label:
            total += lambda_0 * h[other] / h[best] * float((p["s"] * np.log(p["s"] / p[other])).sum())
    return total / len(np.asarray(plain))


@pytest.mark.parametrize("some_are_refused", [False, True])
def test_one_unlabelled_step_is_a_step_on_equation_8(
    data: ClientData, model: Classifier, some_are_refused: bool
) -> None:
    """tau = 1 moves the local model; one step of rate eta gives the gradient of the loss back."""
    beta = 0.0
    rule = work(tau=1, tau_unlabeled=1, beta=beta, lambda_0=2.0)
    start = weights(model)
    double = model.double()
    received = {name: value.clone() for name, value in double.state_dict().items()}
    local = _copy(double)
    labelled = rule.supervised.update(local, data, 1, 0, seed=5)
    unlabeled = data.clients[1].unlabeled
    assert unlabeled is not None
    views = {"image": "none", "augmented": VIEW}
    batch = Stream(unlabeled, 8, derive(5, "unlabeled", 1), views=views).batch(0)
    with torch.no_grad():
        of_local, of_received = local.eval()(batch).logits, double.eval()(batch).logits
    if some_are_refused:
        label, _, _, _ = rule.select(of_local, of_received)
        sure = torch.stack([of_local.softmax(-1), of_received.softmax(-1)]).amax(0).gather(1, label[:, None])
        beta = float(sure.median())
        rule = work(tau=1, tau_unlabeled=1, beta=beta, lambda_0=2.0)
        assert 2 <= rule.select(of_local, of_received)[1].sum() <= 6, "of 8"
    update = rule.update(_copy(double), data, 1, 0, seed=5)
    assert all(torch.equal(value.double(), received[name]) for name, value in start.items())

    def loss() -> float:
        with torch.no_grad():
            student, plain = double({"image": batch["augmented"]}).logits, double(batch).logits
        return _numpy_loss(student, plain, of_local, of_received, beta, 2.0)

    weight = double.get_parameter("body.3.weight")
    change = update.delta["body.3.weight"] - labelled.delta["body.3.weight"]
    largest = [divmod(int(place), change.shape[1]) for place in change.abs().flatten().topk(5).indices]
    assert change.abs().max() > 1e-4
    for at in largest:
        with torch.no_grad():
            before = weight[at].item()
            weight[at] = before + 1e-5
            above = loss()
            weight[at] = before - 1e-5
            below = loss()
            weight[at] = before
        step = update.delta["body.3.weight"][at].item() - labelled.delta["body.3.weight"][at].item()
        # Central differences of step 1e-5 in float64: error about 1e-10.
        assert step == pytest.approx(-0.1 * (above - below) / 2e-5, abs=1e-8)
        assert abs(step) > 1e-6


def _copy(model: Classifier) -> Classifier:
    return copy.deepcopy(model)


def test_nothing_accepted_is_fedavg(data: ClientData, model: Classifier) -> None:
    for rule in (work(beta=1.0), work(tau_unlabeled=0)):
        both = rule.update(_copy(model), data, 0, 2, seed=1)
        alone = rule.supervised.update(_copy(model), data, 0, 2, seed=1)
        assert both.weight == alone.weight == 3 * 8
        assert all(torch.equal(both.delta[name], alone.delta[name]) for name in alone.delta)


def test_accepted_samples_count(data: ClientData, model: Classifier) -> None:
    assert work(beta=0.0).update(_copy(model), data, 0, 0, seed=1).weight == 2 * 3 * 8


def test_without_labelled_steps_both_teachers_are_one(data: ClientData, model: Classifier) -> None:
    rule = work(tau=0, lambda_0=1.5)
    z = model.eval()({"image": data.test.fetch(torch.arange(20))["image"]}).logits
    label, accepted, _, weight = rule.select(z, z)
    assert torch.equal(label, z.argmax(-1))
    assert bool(accepted.all())
    assert weight.tolist() == [1.5] * 20


def test_weight_of_the_discarded_model_is_bounded() -> None:
    generator = torch.Generator().manual_seed(0)
    local, received = (4 * torch.randn(500, 7, generator=generator) for _ in range(2))
    for confidence in ("variance", "entropy", "max"):
        weight = work(lambda_0=0.7, confidence=confidence).select(local, received)[3]
        assert 0 <= weight.min() < weight.max() <= 0.7


def test_neither_teacher_moves(data: ClientData, model: Classifier) -> None:
    """The same pseudo labels in every step of a round: they come from models that stand still."""
    shown = []

    class Watched(FedLabelWork):
        def select(self, local: Tensor, received: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            shown.append((local, received))
            assert not local.requires_grad
            assert not received.requires_grad
            return super().select(local, received)

    assert data.unlabeled is not None
    mine = torch.nonzero(data.unlabeled_owner == 0)[:8, 0]
    few = dataclasses.replace(
        data, unlabeled=data.unlabeled.subset(mine), unlabeled_owner=torch.zeros(8, dtype=torch.int64)
    )
    rule = Watched(LabeledWork(2, 0.5, 8, 0.0), 3, 0.0, 1.0, "variance", "probabilities", "reverse_kl", "both")
    rule.update(_copy(model), few, 0, 0, seed=1)
    # Every step sees the same eight samples, in another order.
    for local, received in shown[1:]:
        assert torch.allclose(local.sort(0).values, shown[0][0].sort(0).values, atol=1e-5)
        assert torch.allclose(received.sort(0).values, shown[0][1].sort(0).values, atol=1e-5)


def test_two_rounds_read_different_batches(data: ClientData, model: Classifier) -> None:
    one, two = (work().supervised.update(_copy(model), data, 0, number, seed=1) for number in (0, 1))
    assert not torch.equal(one.delta["body.1.weight"], two.delta["body.1.weight"])


def _run(method: FedAvg | FedLabel, folder: Path) -> tuple[Classifier, dict[str, float]]:
    model = drive(method.program(), Context(folder, "fedlabel", 0))
    return model, json.loads((folder / "federate" / "result.json").read_text())["metrics"]


def test_a_federation_learns_and_says_how_right_its_labels_are(
    data: ClientData, model: Classifier, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "rounds": 8, "clients_per_round": 4, "tau": 10, "eta": 0.1, "batch_size": 16, "engine": "local",
        "evaluations": 2,
    }  # fmt: skip
    _, metrics = _run(FedLabel(model, data, tau_unlabeled=5, **settings), tmp_path)
    assert metrics["accuracy"] > 0.6
    assert 0.5 < metrics["coverage"] <= 1
    assert metrics["precision"] > 0.5
    assert {"precision_local", "precision_global", "worst_client_accuracy", "failures"} <= metrics.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_0": -1.0}, "lambda_0 is -1.0"),
        ({"tau": -1}, "tau -1"),
        ({"momentum": 1.0}, r"momentum 1.0 in \[0, 1\)"),
        ({"clients_per_round": 9}, "between 1 and the 4 clients"),
    ],
)
def test_refuses(data: ClientData, model: Classifier, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        FedLabel(model, data, **{"clients_per_round": 2, **options})


def test_fedavg_is_one_federation(data: ClientData, model: Classifier) -> None:
    stage = next(iter(FedAvg(model, data, clients_per_round=2).program()))
    assert isinstance(stage, Federate)
    assert (stage.rounds, stage.engine) == (100, "flower")
