import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.classification.dml import DML
from limbeck.methods.classification.supervised import Supervised
from limbeck.stages.evaluation import predict_logits, quality
from tests.methods.tables import (
    Floats,
    Table,
    assert_equal,
    batch,
    fit,
    kl,
    log_softmax,
    onehot,
    small,
    softmax,
    student,
    total,
    value,
)

FEW = settings(max_examples=30, deadline=None)
LOGITS = arrays(np.float64, (4, 3), elements=st.floats(-20, 20))
LABELS = st.lists(st.integers(0, 2), min_size=4, max_size=4)


def ce(labels: list[int], z: Floats) -> float:
    return float(-(onehot(labels, 3) * log_softmax(z)).sum(-1).mean())


def cohort(*logits: Floats, **arguments: float) -> tuple[DML, list[Table]]:
    """A student and its peers of known logits; a table has no builder, so that further peers are put in here."""
    tables = [Table(z) for z in logits]
    objective = DML(tables[0], tables[1], **arguments)  # type: ignore[arg-type]
    objective.peers.extend(tables[2:])
    return objective, tables


# The equations, float64 on both sides: values up to T^2 times 40 / T.


@FEW
@given(LOGITS, LOGITS, LABELS, st.floats(0, 3), st.floats(0.5, 10))
def test_equations_and_gradients(s: Floats, p: Floats, labels: list[int], weight: float, T: float) -> None:
    objective, tables = cohort(s, p, lambda_kl=weight, temperature=T)
    terms = objective.terms(batch(labels))
    total(terms).backward()
    expected = {"ce": ce(labels, s), "peer_ce": ce(labels, p)}
    if weight:
        expected |= {"kl": weight * T**2 * kl(p, s, T).mean(), "peer_kl": weight * T**2 * kl(s, p, T).mean()}
    assert {name: value(term).item() for name, term in terms.items()} == pytest.approx(expected, abs=1e-10)
    for table, own, other in zip(tables, (s, p), (p, s), strict=True):
        gradient = softmax(own) - onehot(labels, 3) + weight * T * (softmax(own / T) - softmax(other / T))
        # No gradient crosses: the other's term would add its own.
        np.testing.assert_allclose(table.gradient(), gradient / 4, atol=1e-12)


def test_worked_example() -> None:
    """p = (.7, .2, .1) and (.5, .3, .2), the first class is right: KL .0851228 and .0920329."""
    one, other = np.log([[0.5, 0.3, 0.2]]), np.log([[0.7, 0.2, 0.1]])
    objective, _ = cohort(one, other)
    found = {name: value(term).item() for name, term in objective.terms(batch([0])).items()}
    expected = {"ce": -math.log(0.5), "peer_ce": -math.log(0.7), "kl": 0.0851228, "peer_kl": 0.0920329}
    assert found == pytest.approx(expected, abs=5e-8)


@FEW
@given(LOGITS, LOGITS, LOGITS, LABELS)
def test_three_networks_average_over_the_others(s: Floats, p: Floats, r: Floats, labels: list[int]) -> None:
    objective, tables = cohort(s, p, r)
    terms = objective.terms(batch(labels))
    total(terms).backward()
    expected = {
        "ce": ce(labels, s),
        "peer_ce": ce(labels, p) + ce(labels, r),
        "kl": (kl(p, s) + kl(r, s)).mean() / 2,
        "peer_kl": (kl(s, p) + kl(r, p)).mean() / 2 + (kl(s, r) + kl(p, r)).mean() / 2,
    }
    assert {name: value(term).item() for name, term in terms.items()} == pytest.approx(expected, abs=1e-11)
    for table, own, others in zip(tables, (s, p, r), ((p, r), (s, r), (s, p)), strict=True):
        mean = (softmax(others[0]) + softmax(others[1])) / 2
        np.testing.assert_allclose(table.gradient(), (2 * softmax(own) - onehot(labels, 3) - mean) / 4, atol=1e-13)


@FEW
@given(LOGITS, LABELS, st.floats(-5, 5))
def test_networks_that_agree_teach_each_other_nothing(z: Floats, labels: list[int], shift: float) -> None:
    objective, tables = cohort(z, z + shift)
    terms = objective.terms(batch(labels))
    total(terms).backward()
    # The rounding of the shifted logits.
    assert abs(value(terms["kl"]).item()) + abs(value(terms["peer_kl"]).item()) <= 1e-13
    for table in tables:
        np.testing.assert_allclose(table.gradient(), (softmax(z) - onehot(labels, 3)) / 4, atol=1e-14)


def test_samples_without_a_label_enter_the_divergences_only() -> None:
    s, p = np.random.default_rng(0).normal(size=(2, 4, 3))
    objective, _ = cohort(s, p)
    s[[0, 2], [0, 2]] += 9  # the student is right in both that have a label
    objective.student.set_logits(s)  # type: ignore[operator]
    terms = objective.terms(batch([0, -1, 2, -1]))
    assert value(terms["ce"]).item() == pytest.approx(ce([0, 2], s[[0, 2]]), rel=1e-12)
    assert value(terms["peer_ce"]).item() == pytest.approx(ce([0, 2], p[[0, 2]]), rel=1e-12)
    assert value(terms["kl"]).item() == pytest.approx(kl(p, s).mean(), rel=1e-12)
    assert value(objective.observed["student_accuracy"][0]).item() == 1


def test_extreme_logits() -> None:
    objective, tables = cohort(np.array([[1e4, -1e4, 0.0]]), np.array([[-1e4, 1e4, 0.0]]))
    terms = objective.terms(batch([0]))
    total(terms).backward()
    assert value(terms["kl"]).item() == value(terms["peer_kl"]).item() == 2e4
    assert all(np.isfinite(table.gradient()).all() for table in tables)


# Whole fits


def test_lambda_0_trains_both_as_if_alone_bit_for_bit(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    together = DML(student(data), student(data, seed=1, width=6), lambda_kl=0.0)
    weights = fit(together, data, tmp_path / "together")
    assert_equal(weights, fit(Supervised(student(data)), data, tmp_path / "student"))
    peer = fit(Supervised(student(data, seed=1, width=6)), data, tmp_path / "peer")
    assert_equal(dict(together.peers[0].state_dict()), peer)
    mutual = fit(DML(student(data), student(data, seed=1, width=6)), data, tmp_path / "mutual")
    with pytest.raises(AssertionError):
        assert_equal(mutual, weights)


def test_peers_are_measured_at_the_end_only(digits: ImageData, tmp_path: Path) -> None:
    """Their test metrics stand beside the student's; before training they are no teachers that could be broken."""
    data = small(digits)
    objective = DML(student(data), student(data, seed=1, width=6), networks=3)
    assert objective.teachers() == {}
    fit(objective, data, tmp_path)
    assert list(objective.teachers()) == ["peer", "peer-2"]
    metrics = json.loads((tmp_path / "fit" / "result.json").read_text())["metrics"]
    for name, peer in zip(("peer", "peer-2"), objective.peers, strict=True):
        measured = quality(predict_logits(peer, data.test))
        assert {key: metrics[f"{name}/{key}"] for key in measured} == measured
    assert metrics["peer/parameters"] > metrics["parameters"]
    assert metrics["peer/accuracy"] > 0.3  # chance is 0.1
    assert "peer" not in {row.split(",")[2] for row in (tmp_path / "fit" / "metrics.csv").read_text().splitlines()}
    # A copy is measured: training could go on.
    assert all(parameter.requires_grad for parameter in objective.parameters())


def test_entropies_are_remembered(digits: ImageData, tmp_path: Path) -> None:
    """Of few updates the moving average is still near the first batch, of log 10 = 2.30 nats."""
    data = small(digits)
    objective = DML(student(data), student(data, seed=1))
    fit(objective, data, tmp_path)
    result = json.loads((tmp_path / "fit" / "result.json").read_text())["metrics"]
    assert {name: result[name] for name in objective.summary()} == objective.summary()
    for name in ("student_entropy", "peer_entropy"):
        assert 1.0 < result[name] < math.log(10)
    assert not objective.kept


def test_entropy_of_the_first_update() -> None:
    s, p = np.random.default_rng(0).normal(size=(2, 4, 3))
    objective, _ = cohort(s, p, temperature=3.0)
    objective.terms(batch([0, 1, 2, 0]))
    objective.finish(batch([0, 1, 2, 0]))
    for name, z in (("student_entropy", s), ("peer_entropy", p)):
        # float32 averages, of the plain softmax whatever T is.
        expected = -(softmax(z) * log_softmax(z)).sum(-1).mean()
        assert objective.summary()[name] == pytest.approx(expected, rel=1e-6)


def test_further_peers_have_weights_of_their_own(digits: ImageData) -> None:
    objective = DML(student(digits), student(digits, seed=1, width=6), networks=4)
    first = [peer.get_parameter("body.0.0.weight") for peer in objective.peers]
    assert [weight.shape[0] for weight in first] == [6, 6, 6]
    assert not any(torch.equal(first[i], first[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert objective.trained() is objective.student


def test_micro_batches_give_the_same_weights(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    runs = []
    for parts in (1, 5):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the third network's first weights
            objective = DML(student(data, norm="group"), student(data, seed=1, norm="group"), 2.0, networks=3)
        runs.append(fit(objective, data, tmp_path / str(parts), accumulate=parts, updates=3))
    for name, tensor in runs[0].items():
        # Sums of float32 in another order, over three updates.
        torch.testing.assert_close(tensor, runs[1][name], rtol=1e-4, atol=1e-6)


# Arguments


def test_refused(digits: ImageData) -> None:
    one, other = Table([[0.0, 1.0]]), Table([[0.0, 1.0]])
    for temperature in (0.0, math.nan):
        with pytest.raises(LimbeckError, match=f"temperature is {temperature}; it must be above 0"):
            DML(one, other, temperature=temperature)
    for weight in (-0.5, math.nan):
        with pytest.raises(LimbeckError, match=f"lambda_kl is {weight}; it must be at least 0"):
            DML(one, other, lambda_kl=weight)
    with pytest.raises(LimbeckError, match="networks is 1; it must be at least 2: the student and one peer"):
        DML(one, other, networks=1)
    with pytest.raises(LimbeckError, match="student and peer are one and the same network"):
        DML(one, one)
    with pytest.raises(LimbeckError, match=r"the peer has the classes \['b', 'a'\] and the student \['a', 'b'\]"):
        DML(Table([[0.0, 1.0]], ("a", "b")), Table([[0.0, 1.0]], ("b", "a")))
    with pytest.raises(LimbeckError, match="a twin of Sequential cannot be made"):
        DML(student(digits), Table(np.zeros((1, 10))), networks=3)
