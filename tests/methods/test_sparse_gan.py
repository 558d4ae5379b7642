import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch.nn import functional as F

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.semi_supervised.sparse_gan import SPARSE
from limbeck.models import Classifier
from limbeck.stages.digest import digest
from limbeck.stages.engine import Engine
from limbeck.stages.fit import Fit
from limbeck.stages.progress import Reporter
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context
from tests.methods.tables import log_softmax, plan, softmax, student, total, value

SIZES = {"generator_width": 4, "critic_width": 4, "critic_depth": 2}


@pytest.fixture(scope="module")
def few() -> ImageData:
    data = load("digits", seed=0, labels_per_class=8, train_size=280)
    assert isinstance(data, ImageData)
    return data


def objective_of(data: ImageData, **arguments: Any) -> SPARSE:
    torch.manual_seed(0)
    objective = SPARSE(student(data, norm="none"), **{**SIZES, **arguments})
    objective.begin(plan(samples=data.train.num_samples, classes=10))
    return objective


def batches(objective: SPARSE, data: ImageData, size: int = 24) -> dict[str, Any]:
    streams = objective.streams(data, size, seed=0)
    made = {name: dict(stream.batch(0)) for name, stream in streams.items()}
    objective.observed.clear()
    return made


def engine_of(objective: SPARSE) -> Engine:
    fabric = Fabric(accelerator="cpu", devices=1)
    groups = objective.parameter_groups()
    optimizers = [torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4) for parameters in groups.values()]
    module, *wrapped = fabric.setup(objective, *optimizers)
    return Engine(fabric, module, dict(zip(groups, wrapped, strict=True)))


def said(objective: SPARSE, images: torch.Tensor) -> list[torch.Tensor]:
    return [objective.generator(images), objective.discriminator(images).logits, objective.student(images).logits]


def test_phase_1_one_network_after_the_other(few: ImageData) -> None:
    # lam of Beta(1e-4, 1e-4) is 0 or 1 in float64: either is plain cross-entropy, of the batch in another order.
    objective = objective_of(few, mixup_alpha=1e-4)
    batch = batches(objective, few)
    torch.manual_seed(1)
    terms = {name: value(term).item() for name, term in objective.terms(batch).items()}
    y = batch["labeled"]["label"].numpy()
    with torch.no_grad():
        z = [s.double().numpy() for s in said(objective, batch["labeled"]["image"])]
    rows = np.arange(len(y))
    ce = [-log_softmax(own)[rows, y].mean() for own in z]
    q = [softmax(own / 0.1) for own in z]
    kl = 0.0
    for m in range(3):
        others = sum(q[n] for n in range(3) if n != m) / 2
        kl += (others * (np.log(others) - log_softmax(z[m] / 0.1))).sum(-1).mean()
    prototype = 0.0
    for own in q:
        means = np.stack([own[y == c].mean(0) if (y == c).any() else np.zeros(10) for c in range(10)])
        scores = -((own[:, None] - means) ** 2).sum(-1)
        prototype -= log_softmax(scores)[rows, y].mean()
    entropies = [-(softmax(own) * log_softmax(own)).sum(-1).mean() for own in z]
    hot = np.eye(10)[y]
    told = [(np.logaddexp(0, own) - hot * own).sum(-1).mean() for own in z[1:]]
    expected = {
        "prototype": prototype,
        "mutual": 0.1 * (sum(ce) + 0.1 * kl),
        "entropy": 0.1 * sum(entropies),
        "mixup": sum(ce),
        "class": sum(told),
    }
    assert terms.keys() == expected.keys()
    for name, number in expected.items():
        assert terms[name] == pytest.approx(number, rel=2e-5), name  # float32


def test_phase_1_one_pass_gives_each_network_its_own_gradient(few: ImageData) -> None:
    """What a network gets of the sum does not change when another network, a peer, gets none."""
    objective = objective_of(few)
    batch = batches(objective, few)
    whole: list[torch.Tensor] = []
    for frozen in (None, objective.generator, objective.discriminator):
        objective.requires_grad_(True)
        if frozen is not None:
            frozen.requires_grad_(False)
        objective.zero_grad()
        torch.manual_seed(1)
        total(objective.terms(batch)).backward()
        own = torch.cat([p.grad.flatten() for p in objective.student.parameters() if p.grad is not None])
        whole.append(own.clone())
    assert torch.equal(whole[0], whole[1])
    assert torch.equal(whole[0], whole[2])
    assert whole[0].abs().max() > 0


def test_pseudo_labels(few: ImageData) -> None:
    objective = objective_of(few)
    with torch.no_grad():
        objective.discriminator.body.get_submodule("classes").weight.mul_(20)  # the two differ
    batch = batches(objective, few)["unlabeled"]
    z = np.stack([s.double().detach().numpy() for s in said(objective, batch["image"])[:0:-1]])
    p = softmax(z / 0.5)
    v = sum((1 + (own * np.log(own)).sum(-1, keepdims=True) / math.log(10)) * own for own in p) / 2
    made = objective.label(batch)
    assert made["pseudo"].tolist() == v.argmax(-1).tolist()
    assert int(made["weight"].sum()) == 6  # of 24, those from the interpolated quantile on
    best = set(np.argsort(-v.max(-1))[:6].tolist())
    assert set(made["weight"].nonzero()[:, 0].tolist()) == best
    kept = sorted(best)
    truth = batch["hidden_label"].numpy()
    seen = {name: value(parts[0]).item() for name, parts in objective.observed.items()}
    assert seen["coverage"] == pytest.approx(6 / 24)
    assert seen["precision"] == pytest.approx((v.argmax(-1) == truth)[kept].mean())
    assert seen["all/precision"] == pytest.approx((v.argmax(-1) == truth).mean())
    past, there = objective.vote.past.read(batch["index"])
    assert there.all()
    np.testing.assert_allclose(past.numpy(), p.mean(0), rtol=1e-4, atol=1e-6)
    assert set(range(10)) >= set(made["target"].tolist())
    assert len(set(made["target"].tolist())) > 3


def test_the_average_is_of_earlier_visits(few: ImageData) -> None:
    objective = objective_of(few, past_weight=1.0, average_decay=0.0)
    batch = batches(objective, few)["unlabeled"]
    objective.vote.past.write(batch["index"], torch.eye(10)[[7]].expand(24, -1))
    assert objective.label(batch)["pseudo"].tolist() == [7] * 24
    assert not objective.vote.past.read(batch["index"])[0][:, 7].eq(1).any()


def unlabeled(objective: SPARSE, data: ImageData) -> dict[str, Any]:
    batch = batches(objective, data)
    return {**batch, "unlabeled": objective.label(batch["unlabeled"])}


def bce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 10).float(), reduction="none").sum(1)


def test_phases_2_and_3(few: ImageData) -> None:
    objective = objective_of(few, lambda_gp=3.0, lambda_rec=7.0)
    batch = unlabeled(objective, few)
    x, t, pseudo, kept = (batch["unlabeled"][k] for k in ("image", "target", "pseudo", "weight"))
    G, D = objective.generator, objective.discriminator
    fake = G(x, t)
    share = batch["unlabeled"]["share"][:, None, None, None]
    penalties = []
    for one in (share * x + (1 - share) * fake).detach().split(1):
        one.requires_grad_(True)
        (slope,) = torch.autograd.grad(D(one).realness.sum(), one, create_graph=True)
        penalties.append((slope.norm() - 1) ** 2)
    on = kept > 0
    expected = {
        "critic": {
            "adversarial": D(fake).realness.mean() - D(x).realness.mean(),
            "penalty": 3 * torch.stack(penalties).mean(),
            "class": bce(D(x).logits, pseudo)[on].mean(),
        },
        "translation": {
            "adversarial": -D(fake).realness.mean(),
            "class": bce(D(fake).logits, t).mean(),
            "own_class": bce(G(fake), t).mean(),
            "cycle": 7 * (G(fake, pseudo) - x)[on].abs().mean(),
        },
        "classifier": {"class": bce(objective.student(fake).logits, t).mean()},
    }
    for phase, terms in expected.items():
        found = getattr(objective, phase)(batch)
        assert found.keys() == terms.keys()
        for name, number in terms.items():
            assert value(found[name]).item() == pytest.approx(number.item(), rel=1e-4, abs=1e-6), (phase, name)

    # Who learns in which phase, and what.
    learns = {"critic": "discriminator", "translation": "generator", "classifier": "student"}
    for phase, name in learns.items():
        own = list(objective.get_submodule(name).parameters())
        for part, term in getattr(objective, phase)(batch).items():
            both = [
                torch.autograd.grad(t, own, retain_graph=True, allow_unused=True, materialize_grads=True)
                for t in (value(term), expected[phase][part])
            ]
            for one, other in zip(*both, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=f"{phase}/{part}")
        objective.zero_grad()
        total(getattr(objective, phase)(batch)).backward()
        touched = {n.partition(".")[0] for n, p in objective.named_parameters() if p.grad is not None}
        assert touched == {name}, phase


def test_no_way_to_go_costs_nothing(few: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cycle term is 0 where G gives back what it gets."""
    objective = objective_of(few)
    batch = unlabeled(objective, few)
    identity = type(objective.generator)
    forward = identity.forward
    monkeypatch.setattr(identity, "forward", lambda self, x, t=None: forward(self, x) if t is None else x)
    terms = objective.translation(batch)
    assert value(terms["cycle"]).item() == 0
    assert value(objective.critic(batch)["adversarial"]).item() == 0


def test_schedule(few: ImageData) -> None:
    objective = objective_of(few, mu=3)
    objective.streams(few, 24, seed=0)
    assert (objective.labeled_batches, objective.unlabeled_batches) == (80 // 24, 200 // 24)
    once = [1] * 3 + [0] * 8 + [1] * 6
    assert [int(objective.supervised(number)) for number in range(34)] == once + once


def test_a_pass_reads_every_image_once(few: ImageData) -> None:
    objective = objective_of(few, mu=3)
    assert few.unlabeled is not None
    streams = objective.streams(few, 24, seed=0)
    for name, samples in (("labeled", few.train), ("unlabeled", few.unlabeled)):
        own = [number for number in range(34) if objective.supervised(number) == (name == "labeled")]
        read = torch.cat([streams[name].batch(number)["index"] for number in own])
        once = read[: len(read) // len(samples) * len(samples)].view(-1, len(samples)).sort().values
        assert len(once) == {"labeled": 5, "unlabeled": 1}[name]
        assert torch.equal(once, samples.indices.sort().values.expand_as(once))


def test_updates(few: ImageData) -> None:
    objective = objective_of(few)
    batch = batches(objective, few)
    engine = engine_of(objective)
    parts = (objective.student, objective.generator, objective.discriminator)
    for number, phases in ((0, {"loss"}), (3, {"loss/critic", "loss/translation", "loss/classifier"})):
        engine.number = number
        before = [digest(part) for part in parts]
        engine.update(batch)
        assert all(old != digest(part) for old, part in zip(before, parts, strict=True))
        assert {name for name in engine.values if name in phases or name.count("/") == 0} >= phases
        assert bool(objective.vote.past.seen.any()) == (number == 3)
    assert [g["weight_decay"] for o in engine.optimizers.values() for g in o.param_groups] == [1e-4, 0.01, 0.01]


@pytest.mark.parametrize("number", [0, 3])
def test_steps_in_order(few: ImageData, number: int) -> None:
    """Each step is that of its own loss, at what the steps before it left, whatever gradients were there before."""
    engine = engine_of(objective_of(few))
    objective = engine.objective
    assert isinstance(objective, SPARSE)
    for parameter in objective.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    engine.number = number
    torch.manual_seed(5)
    engine.update(batches(objective, few))

    other = objective_of(few)
    decay = {other.student: 1e-4, other.generator: 0.01, other.discriminator: 0.01}
    steps = {net: torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=wd) for net, wd in decay.items()}
    batch = batches(other, few)
    torch.manual_seed(5)
    if number == 0:
        total(other.terms(batch)).backward()
        for step in steps.values():
            step.step()
    else:
        batch = {**batch, "unlabeled": other.label(batch["unlabeled"])}
        phases = {
            other.discriminator: other.critic,
            other.generator: other.translation,
            other.student: other.classifier,
        }
        for net, phase in phases.items():
            steps[net].zero_grad()
            total(phase(batch)).backward()
            steps[net].step()
    for name in ("student", "generator", "discriminator"):
        assert digest(objective.get_submodule(name)) == digest(other.get_submodule(name)), name


def test_biases_may_go_without_decay(few: ImageData) -> None:
    objective = objective_of(few)
    settings = FitSettings(updates=1, optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 1e-4}, decay_biases=False)
    fabric = Fabric(accelerator="cpu", devices=1)
    groups = objective.parameter_groups()
    module, *wrapped = fabric.setup(objective, *(settings.make_optimizer(group) for group in groups.values()))
    engine = Engine(fabric, module, dict(zip(groups, wrapped, strict=True)))
    engine.update(batches(objective, few))
    found = [[g["weight_decay"] for g in o.param_groups] for o in engine.optimizers.values()]
    assert found == [[1e-4, 0], [0.01, 0], [0.01, 0]]


def test_learns_and_measures_all_three(few: ImageData, tmp_path: Path) -> None:
    objective = objective_of(few, average_decay=0.8)
    settings = FitSettings(
        updates=230,
        batch_size=24,
        evaluations=0,
        log_every=23,
        accelerator="cpu",
        optimizer={"name": "adamw", "lr": 3e-3, "betas": [0.5, 0.999]},
        schedule={"name": "constant"},
    )
    assert objective.teachers() == {}
    stage = Fit("fit", objective, few, settings)
    stage.run(tmp_path, Context(tmp_path, "test", seed=0, reporter=Reporter(quiet=True)))
    found = objective.teachers()
    assert found.keys() == {"discriminator", "ensemble"}
    test = few.test.fetch(torch.arange(len(few.test)))
    ensemble = found["ensemble"](test).logits
    p = [network(test).logits.detach().softmax(-1) for network in (stage.load(tmp_path), objective.discriminator)]
    torch.testing.assert_close(ensemble.exp(), (p[0] + p[1]) / 2, rtol=1e-5, atol=1e-6)
    assert float((ensemble.argmax(-1) == test["label"]).float().mean()) > 0.4  # chance is 0.1
    numbers = objective.summary()
    assert numbers["kept_precision"] > numbers["all_precision"] > 0.25
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["split"] == "train"]
    for name in ("loss/translation/cycle", "loss/translation/own_class"):
        values = [float(row["value"]) for row in rows if row["name"] == name]
        assert values[-1] < values[0], name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mu": 0}, "mu is 0"),
        ({"quantile": 1.5}, "quantile 1.5"),
        ({"T_vote": 0.0}, "temperature 0.0"),
        ({"lambda_rec": -1.0}, "lambda_rec -1.0"),
        ({"gan_weight_decay": -1.0}, "gan_weight_decay is -1.0"),
        ({"critic_depth": 4}, "a pixel must be left"),
    ],
)
def test_refuses_what_cannot_be(few: ImageData, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(LimbeckError, match=message):
        objective_of(few, **wrong)


def test_needs_a_size(few: ImageData) -> None:
    with pytest.raises(LimbeckError, match="it needs a size and two classes"):
        SPARSE(Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)), ["a", "b"], channels=1))
