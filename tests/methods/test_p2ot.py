"""Self-labelling by (semantic) progressive partial transport: p2ot and sp2ot."""

import copy
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import log_softmax

from limbeck.data.load import load
from limbeck.errors import LimbeckError
from limbeck.methods.clustering.p2ot import P2OT
from limbeck.methods.clustering.self_labelling import SelfLabelling, sigmoid_ramp
from limbeck.methods.clustering.sp2ot import SP2OT
from limbeck.models import build
from limbeck.models.clusterer import cluster
from limbeck.models.folder import load as load_model
from limbeck.models.folder import save
from limbeck.stages.evaluation import predict_logits
from limbeck.stages.evaluation.clustering import measure_training, report, validate
from limbeck.stages.objective import Plan
from limbeck.stages.settings import FitSettings
from tests.labels.assign.problems import scaled

CPU = torch.device("cpu")
FIT = FitSettings(updates=10, batch_size=16)


@pytest.fixture(scope="module")
def data():
    return load("digits", seed=0, train_size=200, imbalance=5)


def method(cls, data, **options):
    torch.manual_seed(0)
    encoder = build("cnn", data.task, width=4)
    return cls(data, encoder, FIT, **{"bank": 3, "heads": 1, "view": "weak", **options})


def begun(cls, data, updates=10, **options) -> SelfLabelling:
    made = method(cls, data, **options)
    torch.manual_seed(1)
    objective = made.objective(cluster(made.student, data.task, **made.head)).train()
    samples = len(objective.samples)
    objective.begin(Plan(data.train.num_samples, 10, updates, updates * 16 / samples))
    return objective


def batches(objective, count):
    stream = objective.streams(objective.data, 16, 0)
    return [stream.batch(number) for number in range(count)]


def test_ramp():
    assert sigmoid_ramp(0.0, 0.1) == pytest.approx(0.1 + 0.9 * math.exp(-5)) == pytest.approx(0.10606, abs=1e-5)
    assert sigmoid_ramp(0.5, 0.1) == pytest.approx(0.35785, abs=1e-5)
    assert sigmoid_ramp(1.0, 0.1) == 1


@pytest.mark.parametrize("options", [{}, {"gamma": math.inf, "rho_0": 1.0}, {"heads": 2}])
def test_loss_is_the_equation(data, options):
    objective = begun(P2OT, data, **options)
    batch = batches(objective, 1)[0]
    bank, labels = objective.bank.keys.clone().numpy(), objective.bank.labels.clone()
    heads = options.get("heads", 1)
    twin = copy.deepcopy(objective)
    logits = twin.student.every({"image": torch.cat([batch["a"], batch["b"]])}).detach().numpy()
    found = objective.terms(batch)["clusters"].detach()

    views = logits[:16], logits[16:]
    kept = (~torch.isin(labels, batch["index"])).numpy()
    assert 0 < (~kept).sum() < len(kept), "some of the batch are in the bank too"
    expected = 0.0
    for head in range(heads):
        targets = []
        for view in views:
            rows = np.concatenate([bank.reshape(-1, heads, 10)[kept, head], view[:, head]]).astype(np.float64)
            plan = scaled(-log_softmax(rows, axis=1), 0.1, options.get("gamma", 1.0), objective.rho)
            targets.append(plan[-16:] * len(rows))
        for view, target in zip(views, targets[::-1], strict=True):
            expected -= float((target * log_softmax(view[:, head].astype(np.float64), axis=1)).sum(1).mean())
    # The solver stops at a gap of 1e-6: its plans are off by the root of that at most.
    assert float(found) == pytest.approx(expected, rel=2e-3)


def test_pseudo_labels_are_what_transport_says(data):
    objective = begun(P2OT, data)
    for batch in batches(objective, 4):
        objective.terms(batch)
        objective.finish(batch)
    assert int(objective.updates) == 4
    logits = torch.randn(16, 1, 10)
    labels, potentials = objective.pseudo_labels(logits, batches(objective, 1)[0]["index"], 0)
    assert labels.shape == (16, 1, 10)
    assert potentials.shape == (1, 11)
    assert float(labels.sum(-1).max()) <= 1 + 1e-5
    assert torch.equal(objective.bank.labels[:16], batches(objective, 3)[2]["index"]) or objective.bank.pushed > 0
    assert bool((objective.potentials != 0).any()), "the next update starts where this one ended"


def test_rho_stays_below_one_and_grows(data):
    objective, seen = begun(P2OT, data, updates=5), []
    for batch in batches(objective, 6):
        seen.append(objective.rho)
        objective.terms(batch)
        objective.finish(batch)
    assert seen[0] == pytest.approx(0.10606, abs=1e-5)
    assert np.all(np.diff(seen[:5]) > 0)
    assert seen[-1] == seen[-2] < 1


def test_without_the_regulariser_it_is_p2ot(data):
    plain, semantic = begun(P2OT, data), begun(SP2OT, data, lambda_0=0.0)
    strong = begun(SP2OT, data, lambda_0=30.0)
    batch = batches(plain, 1)[0]
    losses = [float(objective.terms(batch)["clusters"].detach()) for objective in (plain, semantic, strong)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # the inner problem is solved to a tenth of the gap
    assert abs(losses[2] - losses[0]) > 1e-2


def test_strength_decays(data):
    objective = begun(SP2OT, data, lambda_0=7.0)
    assert objective.strength == pytest.approx(7 * (1 - objective.rho))
    assert begun(SP2OT, data, lambda_0=7.0, schedule="constant").strength == 7


def test_head_and_epoch_with_the_lowest_loss_are_kept(data):
    objective = begun(P2OT, data, updates=20, heads=2)
    per_epoch = len(objective.samples) / 16
    best, kept = math.inf, None
    sums, count = torch.zeros(2), 0
    for number, batch in enumerate(batches(objective, 20), start=1):
        rho = objective.rho
        objective.terms(batch)
        sums, count = sums + torch.cat(objective.kept["losses"]).mean(0) / rho, count + 1
        objective.finish(batch)
        if int(number / per_epoch) > int((number - 1) / per_epoch) or number == 20:
            means = sums / count
            assert int(objective.student.chosen) == int(means.argmin())
            if float(means.min()) <= best:
                best, kept = float(means.min()), copy.deepcopy(objective.student.state_dict())
            sums, count = torch.zeros(2), 0
    assert objective.lowest.item() == pytest.approx(best)
    for name, value in objective.trained().state_dict().items():
        assert torch.equal(value, kept[name]), name
    assert begun(P2OT, data, select="last").trained() is not None


def test_only_what_is_named_trains(data):
    made = method(P2OT, data, trainable=["4"])
    program = made.program()
    stage = next(program)
    names = [name for name, p in stage.objective.student.named_parameters() if p.requires_grad]
    assert names == ["encoder.body.4.weight", "encoder.body.4.bias", "heads.0.weight"]
    assert stage.name == "cluster"


def test_pretraining_comes_first(data):
    stage = next(method(P2OT, data, pretraining=FIT).program())
    assert stage.name == "pretrain"


def test_hidden_truth_is_only_observed(data):
    objective = begun(P2OT, data)
    batch = batches(objective, 1)[0]
    with_truth = objective.terms(batch)["clusters"]
    assert {"coverage", "precision", "rho"} <= objective.observed.keys()
    twin = begun(P2OT, data)
    without = twin.terms({name: value for name, value in batch.items() if name != "hidden_label"})["clusters"]
    assert torch.equal(with_truth, without)
    assert bool((batch["label"] == -1).all())


def test_summary_and_report(data, tmp_path):
    objective = begun(P2OT, data)
    numbers = objective.summary()
    assert {"k_means/nmi", "precision/0.1", "precision/1"} <= numbers.keys()
    assert all(math.isfinite(value) for value in numbers.values())
    model = objective.trained()
    metrics = report(model, {}, data, tmp_path, CPU)
    assert {"nmi", "train/size_kl", "validation/cluster_accuracy", "parameters"} <= metrics.keys()
    table = load_file(tmp_path / "clusters.safetensors")["training"]
    said = predict_logits(model, data.train).logits.argmax(-1)
    pairs = list(zip(said.tolist(), data.train.labels.tolist(), strict=True))
    assert table.tolist() == [[pairs.count((k, c)) for c in range(10)] for k in range(model.clusters)]
    assert torch.equal(measure_training(model, data)[1], table)
    save(model, tmp_path / "model")
    assert validate(load_model(tmp_path / "model"), data, CPU) == validate(model, data, CPU)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (P2OT, {"epsilon": 0.0}, "epsilon is 0.0"),
        (P2OT, {"gamma": -1.0}, "gamma -1"),
        (P2OT, {"rho_0": 0.0}, "rho_0 0"),
        (P2OT, {"bank": 0}, "bank 0"),
        (P2OT, {"heads": 0}, "0 heads"),
        (P2OT, {"clusters": 1}, "1 clusters"),
        (P2OT, {"trainable": ["blocks.11"]}, "no parameter of the student begins with 'blocks.11'"),
        (P2OT, {"view": "none"}, "two different readings"),
        (SP2OT, {"lambda_0": -1.0}, "lambda_0 is -1"),
        (SP2OT, {"neighbours": 0}, "neighbours 0"),
        (SP2OT, {"width": 0.0}, "width 0"),
        (SP2OT, {"steps": 0}, "steps is 0"),
        (SP2OT, {"momentum": 0.0}, "momentum 0"),
    ],
)
def test_wrong_arguments_are_refused(data, cls, options, message):
    with pytest.raises(LimbeckError, match=message):
        method(cls, data, **options)
