import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.data.load import load
from limbeck.data.samples import ImageData
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Mean
from limbeck.methods.classification.kd import KD
from limbeck.methods.classification.supervised import Supervised
from limbeck.teachers import Frozen
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

LOGITS = arrays(np.float64, (4, 3), elements=st.floats(-20, 20))
LABELS = st.lists(st.integers(0, 2), min_size=4, max_size=4)
TEMPERATURES = st.floats(0.5, 20)


@given(LOGITS, LOGITS, LABELS, st.floats(0, 1), TEMPERATURES)
def test_equation_and_gradient(s: Floats, t: Floats, labels: list[int], alpha: float, T: float) -> None:
    """(1 - alpha) CE + alpha T^2 KL, and dL/dz = (1 - alpha)(p - y) + alpha T (p_T - q_T), means over 4 samples."""
    table = Table(s)
    terms = KD(table, Frozen(Table(t)), alpha=alpha, temperature=T).terms(batch(labels))
    loss = total(terms)
    loss.backward()

    hard = -(onehot(labels, 3) * log_softmax(s)).sum(-1).mean()
    soft = T**2 * kl(t, s, T).mean()
    # float64 on both sides, up to T^2 = 400 times values of up to 40 / T.
    assert list(terms) == ["ce", "kd"]
    np.testing.assert_allclose(value(terms["ce"]).item(), (1 - alpha) * hard, atol=1e-11)
    np.testing.assert_allclose(value(terms["kd"]).item(), alpha * soft, atol=1e-11)
    gradient = (1 - alpha) * (softmax(s) - onehot(labels, 3)) + alpha * T * (softmax(s / T) - softmax(t / T))
    np.testing.assert_allclose(table.gradient(), gradient / 4, atol=1e-13)


def test_equals_the_formula_of_the_field() -> None:
    """T^2 mean_b KL(p_t(T) || p_s(T)), as torchdistill, mdistiller and RepDistiller compute it in PyTorch."""
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    found = KD(Table(s.numpy()), Frozen(Table(t.numpy())), alpha=1.0).terms(batch([0] * 6))["kd"]
    log_q, p = torch.log_softmax(s / 4, dim=1), torch.softmax(t / 4, dim=1)
    peers = torch.nn.functional.kl_div(log_q, p, reduction="batchmean") * 4**2
    torch.testing.assert_close(value(found), peers, rtol=1e-12, atol=0)


def test_large_temperature_matches_logits() -> None:
    """Equation 4 of arXiv 1503.02531: for zero-mean logits the gradient tends to (z_i - v_i) / N.

    Their 1 / (N T^2) without the T^2 of the loss. exp(z / T) = 1 + z / T + z^2 / 2 T^2 + ... leaves an error
    of (z^2 - mean z^2 - v^2 + mean v^2) / (2 N T): at most max(z^2, v^2) / (N T) and terms smaller by z / T.
    """
    generator = np.random.default_rng(0)
    s, t = generator.normal(size=(2, 4, 5)) * 2
    s, t = s - s.mean(-1, keepdims=True), t - t.mean(-1, keepdims=True)
    errors = []
    for T in (1e2, 1e3, 1e4):
        table = Table(s)
        total(KD(table, Frozen(Table(t)), alpha=1.0, temperature=T).terms(batch([0] * 4))).backward()
        errors.append(np.abs(4 * table.gradient() - (s - t) / 5).max())
        assert errors[-1] <= 1.1 * max(np.square(s).max(), np.square(t).max()) / (5 * T)
    # First order in 1 / T: ten times the temperature, a tenth of the error.
    assert errors[1] / errors[0] == pytest.approx(0.1, rel=0.05)


@given(LOGITS, LOGITS, TEMPERATURES)
def test_temperature_squared_keeps_the_size(s: Floats, t: Floats, T: float) -> None:
    """Logits T times as large at temperature T: the same distributions, so T^2 times the term."""
    at_one = KD(Table(s), Frozen(Table(t)), alpha=1.0, temperature=1.0).terms(batch([0] * 4))["kd"]
    at_t = KD(Table(T * s), Frozen(Table(T * t)), alpha=1.0, temperature=T).terms(batch([0] * 4))["kd"]
    # T z / T rounds: 1e-16 of logits up to 20, in values up to 40, times T^2.
    np.testing.assert_allclose(value(at_t).item(), T**2 * value(at_one).item(), rtol=1e-12, atol=1e-13 * T**2)


@given(LOGITS, TEMPERATURES, st.floats(-5, 5))
def test_teacher_equal_to_the_student_teaches_nothing(z: Floats, T: float, shift: float) -> None:
    table = Table(z)
    loss = total(KD(table, Frozen(Table(z + shift)), alpha=1.0, temperature=T).terms(batch([0] * 4)))
    loss.backward()
    # Only the rounding of the shifted logits is left, times T^2 and T.
    assert abs(loss.item()) <= 1e-14 * T**2
    assert np.abs(table.gradient()).max() <= 1e-14 * T


def test_alpha_0_is_supervised_bit_for_bit(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    teacher = Frozen(student(data, seed=1))
    distilled = fit(KD(student(data), teacher, alpha=0.0), data, tmp_path / "kd")
    assert_equal(distilled, fit(Supervised(student(data)), data, tmp_path / "supervised"))


def test_alpha_1_reads_no_label(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    wrong = dataclasses.replace(data, train=data.train.relabel((data.train.labels + 3) % 10))
    runs = [
        fit(KD(student(data), Frozen(student(data, seed=1)), alpha=alpha), samples, tmp_path / name)
        for name, samples, alpha in (("a", data, 1.0), ("b", wrong, 1.0), ("c", data, 0.9), ("d", wrong, 0.9))
    ]
    assert_equal(runs[0], runs[1])
    with pytest.raises(AssertionError):
        assert_equal(runs[2], runs[3])


def test_teacher_is_frozen_and_in_eval_mode(digits: ImageData) -> None:
    data = small(digits)
    objective = KD(student(data), Frozen(student(data, seed=1, dropout=0.5))).train()
    before = {name: tensor.clone() for name, tensor in objective.teacher.model.named_buffers()}
    some = objective.streams(data, 20, seed=0)
    assert isinstance(some, Stream)
    terms = [objective.terms(some.batch(0)) for _ in range(2)]
    total(terms[0]).backward()
    # Dropout is off and the statistics of the batches are not counted.
    assert torch.equal(value(terms[0]["kd"]), value(terms[1]["kd"]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.teacher.model.named_buffers())
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert all(p.grad is not None for p in objective.student.parameters())


# transfer_set


@pytest.fixture(scope="module")
def few() -> ImageData:
    """Two labels a class, everything else without."""
    return load("digits", seed=0, labels_per_class=2, view="none")


@given(LOGITS, LOGITS, LABELS, st.lists(st.booleans(), min_size=4, max_size=4))
def test_unlabelled_samples_enter_the_soft_term_only(
    s: Floats, t: Floats, labels: list[int], known: list[bool]
) -> None:
    some = [label if seen else -1 for label, seen in zip(labels, known, strict=True)]
    terms = KD(Table(s), Frozen(Table(t)), alpha=0.5, temperature=2.0, transfer_set="all").terms(batch(some))
    hard = -(onehot(labels, 3) * log_softmax(s)).sum(-1)[known]
    np.testing.assert_allclose(value(terms["ce"]).item(), 0.5 * hard.mean() if len(hard) else 0.0, atol=1e-13)
    np.testing.assert_allclose(value(terms["kd"]).item(), 0.5 * 4 * kl(t, s, 2.0).mean(), atol=1e-12)


@given(LOGITS, LOGITS)
def test_means_are_exact_over_parts_of_a_batch(s: Floats, t: Floats) -> None:
    """Halves with one label and with two: counted means are added up, plain ones averaged, as the engine does."""
    objective = KD(Table(s), Frozen(Table(t)), transfer_set="all")
    labels = [2, -1, 0, 1]
    whole = objective.terms(batch(labels))
    halves = [objective.terms(batch([labels[row] for row in part], part, of=4)) for part in ([0, 1], [2, 3])]
    assert isinstance(whole["ce"], Mean)
    for name, term in whole.items():
        parts = [half[name] for half in halves]
        means = [part for part in parts if isinstance(part, Mean)]
        if means:
            merged = float(sum(mean.total.item() for mean in means) / sum(mean.count.item() for mean in means))
        else:
            merged = float(np.mean([value(part).item() for part in parts]))
        # The same float64 values in another order.
        np.testing.assert_allclose(merged, value(term).item(), rtol=1e-13, atol=1e-15)


def test_micro_batches_give_the_same_weights(few: ImageData, tmp_path: Path) -> None:
    """Each fifth of a batch holds another number of labels; the network has no batch statistics."""
    runs = [
        fit(
            KD(student(few, norm="group"), Frozen(student(few, seed=1)), transfer_set="all"),
            few,
            tmp_path / str(parts),
            accumulate=parts,
            updates=3,
        )
        for parts in (1, 5)
    ]
    for name, tensor in runs[0].items():
        # Sums of float32 in another order, over three updates; means of means would be 1e-2 off.
        torch.testing.assert_close(tensor, runs[1][name], rtol=1e-4, atol=1e-6)


def test_streams(few: ImageData) -> None:
    assert few.unlabeled is not None
    teacher = Frozen(student(few, seed=1))
    streams = {}
    for which in ("labeled", "all"):
        stream = KD(student(few), teacher, transfer_set=which).streams(few, 50, seed=0)
        assert isinstance(stream, Stream)
        streams[which] = stream.samples
    assert sorted(streams["labeled"].indices.tolist()) == sorted(few.train.indices.tolist())
    both = [*few.train.indices.tolist(), *few.unlabeled.indices.tolist()]
    assert sorted(streams["all"].indices.tolist()) == sorted(both)
    assert int((streams["all"].labels >= 0).sum()) == 20


def test_all_without_unlabelled_data_is_labeled(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    runs = [
        fit(KD(student(data), Frozen(student(data, seed=1)), transfer_set=which), data, tmp_path / which, updates=3)
        for which in ("labeled", "all")
    ]
    assert_equal(*runs)


def test_hidden_labels_of_the_transfer_set_are_not_read(few: ImageData, tmp_path: Path) -> None:
    assert few.unlabeled is not None
    truth = few.unlabeled.hidden_labels
    assert truth is not None
    other = few.unlabeled.subset(range(len(few.unlabeled)))
    other.hidden_labels = truth.flip(0)
    assert not torch.equal(other.hidden_labels, truth)
    runs = [
        fit(
            KD(student(few), Frozen(student(few, seed=1)), transfer_set="all"),
            dataclasses.replace(few, unlabeled=samples),
            tmp_path / str(number),
            updates=5,
        )
        for number, samples in enumerate((few.unlabeled, other))
    ]
    assert_equal(*runs)


# classes


def test_teacher_classes_are_matched_by_name() -> None:
    s, t = np.random.default_rng(0).normal(size=(2, 4, 3))
    # The teacher's columns: dog, bird, cat, fish; the student's: cat, dog, fish. Bird is dropped.
    columns = np.stack([t[:, 1], np.full(4, 9.0), t[:, 0], t[:, 2]], axis=1)
    names = ("cat", "dog", "fish")
    teacher = Frozen(Table(columns, ("dog", "bird", "cat", "fish")), classes=names)
    mapped = KD(Table(s, names), teacher).terms(batch([0, 1, 2, 0]))["kd"]
    same = KD(Table(s, names), Frozen(Table(t, names), classes=names)).terms(batch([0, 1, 2, 0]))["kd"]
    assert torch.equal(value(mapped), value(same))
    np.testing.assert_allclose(value(same).item(), 0.9 * 16 * kl(t, s, 4.0).mean(), rtol=1e-12)


def test_teacher_that_lacks_a_class_is_refused() -> None:
    with pytest.raises(LimbeckError, match=r"does not know the classes \['fish'\]"):
        Frozen(Table(np.zeros((1, 2)), ("cat", "dog")), classes=("cat", "dog", "fish"))


# arguments


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(LimbeckError, match=f"alpha is {alpha}; it must lie between 0 and 1"):
        KD(Table([[0.0, 1.0]]), Frozen(Table([[0.0, 1.0]])), alpha=alpha)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_out_of_range(temperature: float) -> None:
    with pytest.raises(LimbeckError, match=f"temperature is {temperature}; it must be above 0"):
        KD(Table([[0.0, 1.0]]), Frozen(Table([[0.0, 1.0]])), temperature=temperature)
