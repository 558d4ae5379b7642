import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.bags import BagData, Bags
from limbeck.data.load import load
from limbeck.errors import LimbeckError
from limbeck.methods.weak.dllp import DLLP
from limbeck.methods.weak.llp_bp import LLPBP, EmbeddingRefinement, PseudoLabelled
from limbeck.metrics.ranking import auc
from limbeck.models.build import build
from limbeck.models.table_classifier import TableClassifier
from limbeck.stages.fit import Fit
from limbeck.stages.propagate import Propagate, Propagation
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, drive
from tests.methods.programs import run_stages
from tests.methods.tables import value

FIT = FitSettings(
    updates=60, batch_size=64, evaluations=3, optimizer={"name": "adam", "lr": 3e-3}, accelerator="cpu", select="best"
)
SETTLED: dict[str, Any] = {"lambda_s": 1.0, "lambda_b": 1.0, "counts": "cardinality"}


@pytest.fixture(scope="module")
def data() -> BagData:
    found = load("breast_cancer", 0, bag_size=8)
    assert isinstance(found, BagData)
    return found


def student(data: BagData, **arguments: Any) -> TableClassifier:
    torch.manual_seed(0)
    model = build("table_mlp", data.task, **{"hidden": [16, 8], **arguments})
    assert isinstance(model, TableClassifier)
    return model


def metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "result.json").read_text())["metrics"]
    return found


def test_program_step_by_step(data: BagData, tmp_path: Path) -> None:
    method = LLPBP(data, student(data), FIT, **SETTLED)
    stages = run_stages(method, tmp_path)
    assert list(stages) == ["propagate-1", "refine-1", "embed-1", "propagate-2", "fit"]
    first, refine, second, last = (stages[name] for name in ("propagate-1", "refine-1", "propagate-2", "fit"))
    assert isinstance(first, Propagate)
    assert isinstance(second, Propagate)
    assert isinstance(refine, Fit)
    assert isinstance(last, Fit)

    # Round 1: standardised rows; round 2: the embedding of the refined network, of the same rows.
    rows = data.train.rows.flatten(0, 1).double()
    torch.testing.assert_close(first.features, ((rows - rows.mean(0)) / rows.std(0, correction=0)).float())
    model = refine.load(tmp_path / "refine-1")
    embedded = model({"row": rows.float()}).features.detach()
    torch.testing.assert_close(second.features, embedded)
    assert second.features.shape[1] == 8

    # Hard labels at tau, of whole bags for the embedding and of rows for the student.
    for stage, fit in ((first, refine), (second, last)):
        said = stage.load(tmp_path / stage.name).probabilities >= 0.5
        assert torch.equal(fit.data.train.labels.flatten(), said.long())
        assert len(said.unique()) == 2
    assert isinstance(refine.data.train, Bags)

    # What is reported of the labels, against the truth.
    hidden = data.train.hidden_labels
    assert hidden is not None
    found = metrics(tmp_path / "fit")
    for number, stage in enumerate((first, second), start=1):
        measured = auc(stage.load(tmp_path / stage.name).probabilities, hidden.flatten())
        assert found[f"propagation/auc-{number}"] == pytest.approx(measured, abs=1e-6)
    assert found["propagation/auc"] == found["propagation/auc-2"]
    assert found["propagation/converged-1"] in (0.0, 1.0)
    assert found["propagation/auc-1"] > 0.7
    assert found["auc"] > 0.9
    assert {"accuracy", "ece", "scaled/nll", "validation/auc", "temperature", "parameters"} <= set(found)


def test_one_round_has_no_embedding(data: BagData, tmp_path: Path) -> None:
    method = LLPBP(data, student(data), dataclasses.replace(FIT, updates=5), rounds=1, tau=0.7, **SETTLED)
    stages = run_stages(method, tmp_path)
    assert list(stages) == ["propagate-1", "fit"]
    said = stages["propagate-1"].load(tmp_path / "propagate-1").probabilities
    last = stages["fit"]
    assert isinstance(last, Fit)
    assert torch.equal(last.data.train.labels, (said >= 0.7).long())
    assert 0 < int((said >= 0.7).sum()) < int((said >= 0.5).sum())


def test_terms_of_the_embedding(data: BagData) -> None:
    objective = EmbeddingRefinement(student(data), {}, lambda_a=0.3)
    batch = data.train.relabel(torch.arange(len(data.train) * 8) % 2).fetch(torch.tensor([3, 7]))
    terms = objective.terms(batch)
    output = objective.student(batch)
    logs = output.logits.detach().double().log_softmax(-1).numpy()
    expected = -np.mean([logs[b, i, i % 2] for b in range(2) for i in range(8)])
    assert value(terms["ce"]).item() == pytest.approx(expected, rel=1e-5)
    hidden_layer, _, last = objective.aggregate
    mean = output.features.detach().double().mean(1).numpy()
    units = np.maximum(mean @ hidden_layer.weight.detach().numpy().T + hidden_layer.bias.detach().numpy(), 0)
    z = units @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    q = np.log(np.exp(z) / np.exp(z).sum(1, keepdims=True))
    p = data.train.counts[[3, 7]].numpy() / 8
    expected = -np.mean((1 - p) * q[:, 0] + p * q[:, 1])
    assert value(terms["aggregate"]).item() == pytest.approx(0.3 * expected, rel=1e-5)
    # Its gradient reaches the embedding, and nothing of the instance head.
    value(terms["aggregate"]).backward()
    assert all(w.grad is not None and w.grad.any() for w in objective.student.body.parameters())
    assert all(w.grad is None for w in objective.student.head.parameters())


def test_without_the_aggregate_term_it_is_plain_training(data: BagData) -> None:
    batch = data.train.relabel(torch.arange(len(data.train) * 8) % 2).fetch(torch.arange(4))
    refined = EmbeddingRefinement(student(data), {}, lambda_a=0.0).terms(batch)
    plain = PseudoLabelled(student(data), {}).terms({name: batch[name].flatten(0, 1) for name in ("row", "label")})
    assert value(refined["aggregate"]).item() == 0
    assert value(refined["ce"]).item() == pytest.approx(value(plain["ce"]).item(), rel=1e-6)


def test_dllp_terms(data: BagData) -> None:
    batch = data.train.fetch(torch.tensor([0, 5, 9]))
    p = data.train.counts[[0, 5, 9]].numpy() / 8
    logits = student(data)(batch).logits.detach().double()
    q = logits.softmax(-1).numpy()[..., 1]
    bag = -np.mean(p * np.log(q.mean(1)) + (1 - p) * np.log(1 - q.mean(1)))
    instance = -np.mean(p[:, None] * np.log(q) + (1 - p[:, None]) * np.log(1 - q))
    assert value(DLLP(student(data)).terms(batch)["ce"]).item() == pytest.approx(bag, rel=1e-5)
    assert value(DLLP(student(data), level="instance").terms(batch)["ce"]).item() == pytest.approx(instance, rel=1e-5)
    assert instance > bag + 1e-5  # Jensen


def test_dllp_learns_from_proportions(data: BagData, tmp_path: Path) -> None:
    objective = DLLP(student(data))
    stage = Fit("fit", objective, data, dataclasses.replace(FIT, updates=150))
    stage.run(tmp_path, Context(tmp_path, "dllp", seed=0))
    assert metrics(tmp_path)["auc"] > 0.95


def test_neighbours_are_what_ranks_the_rows(data: BagData) -> None:
    """The card's claim in small: kNN-free propagation knows bags only."""
    found = {}
    for lambda_s in (0.0, 1.0):
        method = LLPBP(data, student(data), FIT, **{**SETTLED, "lambda_s": lambda_s})
        stage = next(method.program())
        assert isinstance(stage, Propagate)
        beliefs, _ = stage.how.solve(stage.features, data.train)
        assert data.train.hidden_labels is not None
        found[lambda_s] = auc(beliefs.log_odds, data.train.hidden_labels.flatten())
    assert found[1.0] > found[0.0] + 0.05 > 0.55


def test_hyperparameters_of_the_propagation(data: BagData) -> None:
    assert LLPBP(data, student(data), FIT).how == Propagation()
    given: dict[str, Any] = {
        "lambda_s": 0.5,
        "lambda_b": 0.25,
        "k": 3,
        "delta": 1.0,
        "kernel": "rbf",
        "counts": "cardinality",
        "max_positives": 1,
        "iterations": 7,
        "damping": 0.1,
    }
    assert LLPBP(data, student(data), FIT, **given).how == Propagation(**given)


def test_dry_run_knows_the_stages(data: BagData, tmp_path: Path) -> None:
    context = Context(tmp_path / "none", "llp-bp", seed=0, dry_run=True)
    drive(LLPBP(data, student(data), FIT, **SETTLED).program(), context)
    names = [row["stage"] for row in context.estimates]
    assert names == ["propagate-1", "refine-1", "embed-1", "propagate-2", "fit"]
    assert not (tmp_path / "none").exists()


def test_student_is_not_the_refined_network(data: BagData, tmp_path: Path) -> None:
    model = student(data)
    before = copy.deepcopy(model.state_dict())
    program = LLPBP(data, model, dataclasses.replace(FIT, updates=5), **SETTLED).program()
    stage: Any = next(program)
    context = Context(tmp_path, "test", seed=0)
    while stage.name != "fit":
        stage.run(tmp_path / stage.name, context)
        stage = program.send(stage.load(tmp_path / stage.name))
    assert stage.objective.student is model
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"tau": 1.0}, "tau is 1"),
        ({"lambda_a": -0.1}, "lambda_a is -0.1"),
        ({"lambda_s": -1.0}, "lambda_s is -1"),
        ({"damping": 1.0}, "damping is 1"),
    ],
)
def test_refusals(data: BagData, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        LLPBP(data, student(data), FIT, **options)


def test_unknown_level(data: BagData) -> None:
    with pytest.raises(LimbeckError, match="bag or instance"):
        DLLP(student(data), level="row")  # type: ignore[arg-type]
