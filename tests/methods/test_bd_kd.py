import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.classification.bd_kd import BDKD
from limbeck.methods.classification.dml import DML
from limbeck.methods.classification.supervised import Supervised
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
from tests.methods.test_dml import ce

FEW = settings(max_examples=30, deadline=None)
LOGITS = arrays(np.float64, (4, 3), elements=st.floats(-20, 20))
LABELS = st.lists(st.integers(0, 2), min_size=4, max_size=4)
SURE, UNSURE = np.array([[0.7, 0.2, 0.1]]), np.array([[0.5, 0.3, 0.2]])


def entropy(z: Floats) -> Floats:
    values: Floats = -(softmax(z) * log_softmax(z)).sum(-1)
    return values


def weights(s: Floats, t: Floats, delta: float) -> tuple[Floats, Floats]:
    """(w_f, w_r) by the rule, sample by sample."""
    of_teacher, of_student = entropy(t), entropy(s)
    gap = of_teacher - of_student
    gap[np.abs(gap) <= 16 * np.finfo(float).eps * (1 + of_teacher + of_student)] = 0.0
    return np.where(gap > 0, delta, 1.0), np.where(gap < 0, delta, 1.0)


def terms_and_gradients(s: Floats, t: Floats, labels: list[int], **arguments: Any) -> tuple[Any, Floats, Floats]:
    one, other = Table(s), Table(t)
    terms = BDKD(one, other, **arguments).terms(batch(labels))
    total(terms).backward()
    return {name: value(term).item() for name, term in terms.items()}, one.gradient(), other.gradient()


# The equations, float64 on both sides: values up to T^2 times 2 delta times 40 / T.


@FEW
@example(np.array([[17.0, 0, 0]] * 4), np.array([[-10.0, -11, 7]] * 4), [0] * 4, 2.0, 0.5, 1.0, 1.0)
@given(LOGITS, LOGITS, LABELS, st.floats(1, 4), st.floats(0.5, 10), st.floats(0.1, 2), st.floats(0.1, 2))
def test_equations(s: Floats, t: Floats, labels: list[int], delta: float, T: float, by: float, back: float) -> None:
    found, _, _ = terms_and_gradients(s, t, labels, delta=delta, temperature=T, lambda_s=by, lambda_t=back)
    w_f, w_r = weights(s / T, t / T, delta)
    assert found == pytest.approx(
        {
            "ce": ce(labels, s),
            "teacher_ce": ce(labels, t),
            "forward": by * T**2 * (w_f * kl(t, s, T)).mean(),
            "reverse": by * T**2 * (w_r * kl(s, t, T)).mean(),
            "teacher_kl": back * T**2 * kl(s, t, T).mean(),
        },
        abs=1e-9,
    )


@FEW
@given(LOGITS, LOGITS, LABELS, st.floats(1, 4), st.floats(0.5, 4))
def test_gradients(s: Floats, t: Floats, labels: list[int], delta: float, T: float) -> None:
    """At T = 1, of the forward KL p_s - p_t, of the reverse p_s (log p_s/p_t - RKL); nothing crosses, weights fixed."""
    _, of_student, of_teacher = terms_and_gradients(s, t, labels, delta=delta, temperature=T)
    w_f, w_r = weights(s / T, t / T, delta)
    p_s, p_t, log_ratio = softmax(s / T), softmax(t / T), log_softmax(s / T) - log_softmax(t / T)
    forward, reverse = p_s - p_t, p_s * (log_ratio - kl(s, t, T)[:, None])
    expected = softmax(s) - onehot(labels, 3) + T * (w_f[:, None] * forward + w_r[:, None] * reverse)
    np.testing.assert_allclose(of_student, expected / 4, atol=1e-11)
    np.testing.assert_allclose(of_teacher, (softmax(t) - onehot(labels, 3) + T * (p_t - p_s)) / 4, atol=1e-11)


def test_worked_example() -> None:
    """FKL .0851228, RKL .0920329, entropies .8018186 and 1.0296530; the rule is symmetric under swapped roles."""
    for s, t, stressed in ((UNSURE, SURE, "reverse"), (SURE, UNSURE, "forward")):
        found, _, _ = terms_and_gradients(np.log(s), np.log(t), [0], temperature=1.0)
        # Sums of numbers written with seven digits.
        assert found["forward"] + found["reverse"] == pytest.approx(0.2691886, abs=1.5e-7)
        assert found[stressed] == pytest.approx(2 * 0.0920329, abs=1e-7)
    found, _, _ = terms_and_gradients(np.log(UNSURE), np.log(SURE), [0], temperature=1.0, direction="reversed")
    assert found["forward"] == pytest.approx(2 * 0.0851228, abs=1e-7)
    assert found["reverse"] == pytest.approx(0.0920329, abs=1e-7)


@FEW
@given(LOGITS, LOGITS)
def test_delta_1_is_jeffreys_in_both_directions(s: Floats, t: Floats) -> None:
    for direction in ("balancing", "reversed"):
        found, _, _ = terms_and_gradients(s, t, [0] * 4, delta=1.0, temperature=1.0, direction=direction)
        jeffreys = ((softmax(t) - softmax(s)) * (log_softmax(t) - log_softmax(s))).sum(-1).mean()
        assert found["forward"] + found["reverse"] == pytest.approx(jeffreys, abs=1e-11)


@FEW
@given(LOGITS, LOGITS, LABELS)
def test_without_the_reverse_part_it_is_mutual_learning(s: Floats, t: Floats, labels: list[int]) -> None:
    found, _, of_teacher = terms_and_gradients(s, t, labels, delta=1.0, temperature=4.0)
    one, other = Table(s), Table(t)
    mutual = DML(one, other, temperature=4.0).terms(batch(labels))
    total(mutual).backward()
    assert found["forward"] == pytest.approx(value(mutual["kl"]).item(), rel=1e-12, abs=1e-14)
    assert found["teacher_kl"] == pytest.approx(value(mutual["peer_kl"]).item(), rel=1e-12, abs=1e-14)
    np.testing.assert_allclose(of_teacher, other.gradient(), atol=1e-15)


@FEW
@given(LOGITS, LABELS)
def test_networks_that_agree_teach_each_other_nothing(z: Floats, labels: list[int]) -> None:
    found, of_student, of_teacher = terms_and_gradients(z, z, labels)
    assert found["forward"] == found["reverse"] == found["teacher_kl"] == 0
    # The gradient of the forward KL is p_s - p_t = 0 up to the last place, times T.
    for gradient in (of_student, of_teacher):
        np.testing.assert_allclose(gradient, (softmax(z) - onehot(labels, 3)) / 4, atol=1e-15)


def test_large_temperature_matches_logits() -> None:
    """T^2 times either KL tends to |z_s - z_t|^2 / (2 C) for zero-mean logits, up to a term in 1 / T."""
    s, t = np.random.default_rng(0).normal(size=(2, 4, 5))
    s, t = s - s.mean(-1, keepdims=True), t - t.mean(-1, keepdims=True)
    limit = np.square(s - t).sum(-1).mean() / 10
    errors = {}
    for T in (1e2, 1e3):
        found, _, _ = terms_and_gradients(s, t, [0] * 4, delta=1.0, temperature=T)
        errors[T] = [abs(found[name] - limit) for name in ("forward", "reverse", "teacher_kl")]
        assert max(errors[T]) <= 10 / T
    for near, far in zip(errors[1e3], errors[1e2], strict=True):
        assert near / far == pytest.approx(0.1, rel=0.1)


def test_one_hot_teacher_and_extreme_logits() -> None:
    """A teacher without doubt stresses the reverse KL; both KLs and their gradients stay finite."""
    s, t = np.array([[0.0, 1.0, 2.0]]), np.array([[1e4, -1e4, 0.0]])
    found, of_student, of_teacher = terms_and_gradients(s, t, [0], temperature=1.0)
    assert found["forward"] == pytest.approx(kl(t, s).item(), rel=1e-12)
    assert found["reverse"] == pytest.approx(2 * kl(s, t).item(), rel=1e-12)
    assert np.isfinite(of_student).all()
    assert np.isfinite(of_teacher).all()
    found, _, _ = terms_and_gradients(-t, t, [0], temperature=1.0)
    assert found["forward"] == found["reverse"] == 2e4


@FEW
@given(LOGITS, LOGITS, LOGITS)
def test_two_teachers_are_averaged_and_weighed_apart(s: Floats, t: Floats, r: Floats) -> None:
    one, first, second = Table(s), Table(t), Table(r)
    objective = BDKD(one, first, temperature=1.0)
    objective.peers.append(second)
    terms = {name: value(term).item() for name, term in objective.terms(batch([0] * 4)).items()}
    forward = [weights(s, z, 2.0)[0] * kl(z, s) for z in (t, r)]
    reverse = [weights(s, z, 2.0)[1] * kl(s, z) for z in (t, r)]
    assert terms["forward"] == pytest.approx(np.mean(forward), abs=1e-10)
    assert terms["reverse"] == pytest.approx(np.mean(reverse), abs=1e-10)
    back = (kl(s, t) + kl(r, t)).mean() / 2 + (kl(s, r) + kl(t, r)).mean() / 2
    assert terms["teacher_kl"] == pytest.approx(back, abs=1e-10)


# What is logged


def test_shares_of_what_is_stressed() -> None:
    """Of four samples the student is surer in one, less sure in two, and as sure in one."""
    sure, unsure = np.log(SURE[0]), np.log(UNSURE[0])
    objective = BDKD(Table([sure, unsure, unsure, sure]), Table([unsure, sure, sure, sure[[1, 0, 2]]]))
    some = batch([0, 0, 1, 1])
    objective.terms(some)
    logged = {name: value(parts[0]).item() for name, parts in objective.observed.items()}
    assert (logged["forward_stressed"], logged["reverse_stressed"]) == (0.25, 0.5)
    assert (logged["student_accuracy"], logged["teacher_accuracy"]) == (0.5, 0.75)
    objective.finish(some)
    found = objective.summary()
    assert (found["forward_stressed"], found["reverse_stressed"]) == (0.25, 0.5)
    # float32 averages, at T = 1 though the loss is at 4.
    low, high = 0.8018186, 1.0296530
    assert found["student_entropy"] == pytest.approx((low + high) / 2, rel=1e-6)
    assert found["teacher_entropy"] == pytest.approx((3 * low + high) / 4, rel=1e-6)


def test_teacher_is_measured_beside_the_student(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    objective = BDKD(student(data), student(data, seed=1, width=16))
    fit(objective, data, tmp_path, clip_grad_norm=5.0)
    metrics = json.loads((tmp_path / "fit" / "result.json").read_text())["metrics"]
    assert metrics["teacher/accuracy"] > 0.3  # chance is 0.1
    assert {name: metrics[name] for name in objective.summary()} == objective.summary()
    assert 0 < metrics["forward_stressed"] + metrics["reverse_stressed"] <= 1
    rows = [row.split(",") for row in (tmp_path / "fit" / "metrics.csv").read_text().splitlines()]
    names = {row[3] for row in rows if row[2] == "train"}
    assert {"gradient_norm", "teacher_accuracy", "forward_stressed", "loss/reverse"} <= names
    assert "teacher" not in {row[2] for row in rows}


# Whole fits


def test_lambdas_0_train_both_as_if_alone_bit_for_bit(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    alone = [
        fit(Supervised(student(data, seed=seed, width=width)), data, tmp_path / str(seed))
        for seed, width in ((0, 4), (1, 6))
    ]
    for lambda_s, lambda_t in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
        objective = BDKD(student(data), student(data, seed=1, width=6), lambda_s=lambda_s, lambda_t=lambda_t)
        found = [
            fit(objective, data, tmp_path / f"{lambda_s}-{lambda_t}"),
            {name: tensor.clone() for name, tensor in objective.peers[0].state_dict().items()},
        ]
        for together, same, taught in zip(found, alone, (lambda_s, lambda_t), strict=True):
            if not taught:
                assert_equal(together, same)
            else:
                with pytest.raises(AssertionError):
                    assert_equal(together, same)
        assert ("forward_stressed" in objective.summary()) == (lambda_s > 0)


def test_settings_decide_the_weights(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    ways: list[dict[str, Any]] = [{}, {"delta": 3.0}, {"direction": "reversed"}, {"temperature": 2.0}]
    found = [
        fit(BDKD(student(data), student(data, seed=1), **way), data, tmp_path / str(n), updates=6)
        for n, way in enumerate(ways)
    ]
    for other in found[1:]:
        assert not torch.equal(found[0]["body.0.0.weight"], other["body.0.0.weight"])


# Arguments


def test_refused() -> None:
    one, other = Table([[0.0, 1.0]]), Table([[0.0, 1.0]])
    for delta in (0.9, math.nan):
        with pytest.raises(LimbeckError, match=f"delta is {delta}; it must be at least 1"):
            BDKD(one, other, delta=delta)
    with pytest.raises(LimbeckError, match=r"direction is 'balanced'.*Did you mean 'balancing'"):
        BDKD(one, other, direction="balanced")  # type: ignore[arg-type]
    with pytest.raises(LimbeckError, match="lambda_s is -1; it must be at least 0"):
        BDKD(one, other, lambda_s=-1)
    with pytest.raises(LimbeckError, match="lambda_t is -1; it must be at least 0"):
        BDKD(one, other, lambda_t=-1)
    with pytest.raises(LimbeckError, match="temperature is 0; it must be above 0"):
        BDKD(one, other, temperature=0)
    with pytest.raises(LimbeckError, match="networks is 1; it must be at least 2: the student and one teacher"):
        BDKD(one, other, networks=1)
