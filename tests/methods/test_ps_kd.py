from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.methods.classification.ps_kd import PSKD
from limbeck.methods.classification.supervised import Supervised
from limbeck.stages.objective import Batch
from tests.contract.training import KillAt, Killed
from tests.methods.tables import (
    Floats,
    Table,
    assert_equal,
    batch,
    fit,
    log_softmax,
    onehot,
    plan,
    small,
    softmax,
    student,
    total,
)

LOGITS = arrays(np.float64, (4, 3), elements=st.floats(-15, 15))
LABELS = st.lists(st.integers(0, 2), min_size=4, max_size=4)
ALPHAS = st.floats(0, 1)


def begun(table: Table, past: Floats, alpha: float) -> PSKD:
    """In an epoch after the first: ``past`` is remembered for every sample, and alpha_t = alpha."""
    objective = PSKD(table, alpha_T=alpha, schedule="constant")
    objective.begin(plan(*past.shape))
    objective.memory.write(torch.arange(len(past)), torch.tensor(past))
    return objective


def loss_and_gradient(objective: PSKD | Supervised, some: Batch) -> tuple[float, Floats]:
    table = objective.student
    assert isinstance(table, Table)
    table.weight.grad = None
    loss = total(objective.terms(some))
    loss.backward()
    return loss.item(), table.gradient().copy()


# The equations. Targets are float32: 6e-8 of values up to 1, times log-probabilities of up to 30.


@given(LOGITS, LOGITS, LABELS, ALPHAS)
def test_equation_and_gradient(z: Floats, before: Floats, labels: list[int], alpha: float) -> None:
    loss, gradient = loss_and_gradient(begun(Table(z), softmax(before), alpha), batch(labels, epoch=3))
    q = (1 - alpha) * onehot(labels, 3) + alpha * softmax(before)
    np.testing.assert_allclose(loss, -(q * log_softmax(z)).sum(-1).mean(), rtol=1e-6, atol=5e-6)
    np.testing.assert_allclose(gradient, (softmax(z) - q) / 4, atol=1e-7)


def test_worked_example() -> None:
    """A worked example: alpha 0.4 is epoch 5 of 10 at alpha_T 0.8."""
    past, p = np.array([[0.2, 0.5, 0.3]]), np.array([[0.25, 0.6, 0.15]])
    objective = PSKD(Table(np.log(p)), alpha_T=0.8)
    objective.begin(plan(1, 3, epochs=10))
    objective.memory.write(torch.tensor([0]), torch.tensor(past))
    loss, gradient = loss_and_gradient(objective, batch([1], epoch=4))
    assert loss == pytest.approx(0.7472184, abs=1e-7)
    np.testing.assert_allclose(gradient, [[0.17, -0.2, 0.03]], atol=1e-7)
    np.testing.assert_allclose(p - gradient, [[0.08, 0.8, 0.12]], atol=1e-7)

    _, plain = loss_and_gradient(Supervised(Table(np.log(p))), batch([1]))
    assert np.abs(gradient).sum() == pytest.approx(0.4, abs=1e-7)
    assert np.abs(plain).sum() == pytest.approx(0.8, abs=1e-7)
    r = np.abs(gradient).sum() / np.abs(plain).sum()
    assert r == pytest.approx(1 - 0.4 * (1 - 0.5) / (1 - 0.6), abs=1e-6)


@given(LOGITS, LOGITS, LABELS, ALPHAS)
def test_target_is_a_distribution_and_keeps_its_class(
    z: Floats, before: Floats, labels: list[int], alpha: float
) -> None:
    _, gradient = loss_and_gradient(begun(Table(z), softmax(before), alpha), batch(labels, epoch=3))
    q = softmax(z) - 4 * gradient
    np.testing.assert_allclose(q.sum(-1), 1, atol=4e-7)
    assert q.min() >= -4e-7
    if alpha < 0.499:
        assert q.argmax(-1).tolist() == labels


@given(LOGITS, LABELS, ALPHAS)
def test_uniform_memory_is_label_smoothing(z: Floats, labels: list[int], alpha: float) -> None:
    objective = begun(Table(z), np.full((4, 3), 1 / 3), alpha)
    smoothed = Supervised(Table(z), label_smoothing=alpha)
    (mine, my_gradient), (theirs, their_gradient) = (
        loss_and_gradient(o, batch(labels, epoch=3)) for o in (objective, smoothed)
    )
    np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=5e-6)
    np.testing.assert_allclose(my_gradient, their_gradient, atol=1e-7)


@given(LOGITS, LABELS, ALPHAS)
def test_memory_equal_to_the_prediction_scales_the_gradient(z: Floats, labels: list[int], alpha: float) -> None:
    _, gradient = loss_and_gradient(begun(Table(z), softmax(z), alpha), batch(labels, epoch=3))
    _, plain = loss_and_gradient(Supervised(Table(z)), batch(labels))
    np.testing.assert_allclose(gradient, (1 - alpha) * plain, atol=1e-7)


def test_extreme_logits() -> None:
    z = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    loss, gradient = loss_and_gradient(begun(Table(z), softmax(z[::-1]), 0.5), batch([0, 1], epoch=1))
    assert loss == pytest.approx(0.5 * 2e4)
    assert np.isfinite(gradient).all()


# The schedule


@pytest.mark.parametrize("epochs", [300, 300 - 48 / 50_000])
def test_alpha_of_an_epoch(epochs: float) -> None:
    """The schedule's values by hand, also where whole batches leave the last epoch unfinished."""
    objective = PSKD(Table([[0.0, 1.0]]), alpha_T=0.8)
    objective.begin(plan(1, 2, epochs=epochs, updates=1000))
    found = objective.alpha(torch.tensor([0, 149, 299]))
    # float32
    assert found.tolist() == pytest.approx([0.0026666667, 0.4, 0.8], rel=1e-6)


def test_alpha_follows_the_epoch_of_each_sample() -> None:
    """A batch that holds the end of an epoch and the beginning of the next."""
    z, before = np.random.default_rng(0).normal(size=(2, 2, 3))
    objective = PSKD(Table(z), alpha_T=0.8)
    objective.begin(plan(2, 3, epochs=4))
    objective.memory.write(torch.arange(2), torch.tensor(softmax(before)))
    _, gradient = loss_and_gradient(objective, {**batch([0, 1]), "epoch": torch.tensor([1, 2])})
    alpha = np.array([[0.4], [0.6]])
    q = (1 - alpha) * onehot([0, 1], 3) + alpha * softmax(before)
    np.testing.assert_allclose(gradient, (softmax(z) - q) / 2, atol=1e-7)


def test_constant_schedule_begins_in_the_second_epoch() -> None:
    z, before = np.random.default_rng(0).normal(size=(2, 2, 3))
    objective = PSKD(Table(z), alpha_T=0.7, schedule="constant")
    objective.begin(plan(2, 3, epochs=10))
    assert loss_and_gradient(objective, batch([0, 1]))[0] == pytest.approx(-log_softmax(z)[[0, 1], [0, 1]].mean())
    objective.memory.write(torch.arange(2), torch.tensor(softmax(before)))
    q = 0.3 * onehot([0, 1], 3) + 0.7 * softmax(before)
    for epoch in (1, 5, 9):
        _, gradient = loss_and_gradient(objective, batch([0, 1], epoch=epoch))
        np.testing.assert_allclose(gradient, (softmax(z) - q) / 2, atol=1e-7)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(LimbeckError, match=f"alpha_T is {alpha}; it must lie between 0 and 1"):
        PSKD(Table([[0.0, 1.0]]), alpha_T=alpha)


# Whole fits against cross-entropy


@pytest.mark.parametrize("past", ["predictions", "model"])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_alpha_0_is_cross_entropy_bit_for_bit(digits: ImageData, tmp_path: Path, past: Any, schedule: Any) -> None:
    data = small(digits)
    softened = fit(PSKD(student(data), alpha_T=0.0, past=past, schedule=schedule), data, tmp_path / "ps-kd")
    assert_equal(softened, fit(Supervised(student(data)), data, tmp_path / "supervised"))


@pytest.mark.parametrize("past", ["predictions", "model"])
def test_first_epoch_is_cross_entropy_for_any_alpha(digits: ImageData, tmp_path: Path, past: Any) -> None:
    """200 samples in batches of 50: the fifth update is the first that may differ."""
    data = small(digits)
    for updates in (4, 5):
        how: dict[str, Any] = {"updates": updates, "schedule": {"name": "constant"}}
        softened = fit(PSKD(student(data), alpha_T=1.0, past=past), data, tmp_path / f"{past}-{updates}", **how)
        plain = fit(Supervised(student(data)), data, tmp_path / f"plain-{updates}", **how)
        if updates == 4:
            assert_equal(softened, plain)
        else:
            with pytest.raises(AssertionError):
                assert_equal(softened, plain)


# The memory


class Emitted(PSKD):
    """Writes down what it hands over after each update."""

    def after_update(self, batch: Batch) -> None:
        if not hasattr(self, "emitted"):
            self.emitted: list[tuple[Tensor, Tensor]] = []
        self.emitted.append((batch["index"], batch["probabilities"]))
        super().after_update(batch)


def test_after_an_epoch_the_memory_is_what_was_emitted(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    objective = Emitted(student(data))
    fit(objective, data, tmp_path, updates=4)
    index, probabilities = (torch.cat(parts) for parts in zip(*objective.emitted, strict=True))
    assert index.sort().values.tolist() == data.train.indices.sort().values.tolist()
    assert torch.equal(objective.memory.table[index], probabilities)
    assert int(objective.memory.seen.sum()) == len(data.train) < len(objective.memory.seen)


def test_memory_is_of_the_same_forward_pass() -> None:
    """What training saw, before the step: not what the updated model would say."""
    z, later = np.random.default_rng(0).normal(size=(2, 3, 3))
    table = Table(z)
    objective = PSKD(table)
    objective.begin(plan(3, 3))
    total(objective.terms(batch([0, 1, 2])))
    table.set_logits(later)
    objective.finish(batch([0, 1, 2]))
    np.testing.assert_allclose(objective.memory.table.numpy(), softmax(z), atol=1e-7)


def test_memory_is_of_the_training_mode(digits: ImageData) -> None:
    """Batch statistics, not running ones."""
    data = small(digits, count=20)
    objective = PSKD(student(data)).train()
    objective.begin(plan(data.train.num_samples, 10))
    some = {**data.train.fetch(torch.arange(20)), "epoch": torch.zeros(20, dtype=torch.int64)}
    objective.terms(some)
    objective.finish(some)
    with torch.no_grad():
        in_training = objective.student(some).logits.softmax(-1)
        in_eval = objective.student.eval()(some).logits.softmax(-1)
    assert torch.equal(objective.memory.read(some["index"])[0], in_training)
    assert not torch.allclose(in_training, in_eval, atol=1e-3)


@given(st.permutations(range(4)), st.permutations(range(4)))
def test_memory_is_keyed_by_index_not_by_order(first: list[int], second: list[int]) -> None:
    z, later = np.random.default_rng(0).normal(size=(2, 4, 3))
    labels = [0, 1, 2, 0]
    table = Table(z)
    objective = PSKD(table, alpha_T=0.8)
    objective.begin(plan(4, 3, epochs=2))
    for rows in (first[:1], first[1:]):
        some = batch([labels[row] for row in rows], rows, of=4)
        objective.terms(some)
        objective.finish(some)
    table.set_logits(later)
    _, gradient = loss_and_gradient(objective, batch([labels[row] for row in second], second, epoch=1))
    q = 0.2 * onehot(labels, 3) + 0.8 * softmax(z)
    np.testing.assert_allclose(gradient, (softmax(later) - q) / 4, atol=1e-7)


def test_sample_that_was_never_seen_keeps_its_label() -> None:
    z = np.random.default_rng(0).normal(size=(2, 3))
    objective = PSKD(Table(z), alpha_T=0.8)
    objective.begin(plan(2, 3, epochs=2))
    objective.memory.write(torch.tensor([0]), torch.tensor(softmax(z[:1])))
    _, gradient = loss_and_gradient(objective, batch([0, 1], epoch=1))
    alpha = np.array([[0.8], [0.0]])
    q = (1 - alpha) * onehot([0, 1], 3) + alpha * softmax(z)
    np.testing.assert_allclose(gradient, (softmax(z) - q) / 2, atol=1e-7)


def test_no_gradient_flows_into_the_past() -> None:
    objective = PSKD(Table([[1.0, 2.0, 3.0]]))
    objective.begin(plan(1, 3, epochs=2))
    for epoch in range(2):
        some = batch([0], epoch=epoch)
        total(objective.terms(some)).backward()
        objective.finish(some)
    assert not objective.memory.table.requires_grad
    assert list(objective.parameters()) == list(objective.student.parameters())


def test_float16_storage(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    half = Emitted(student(data), storage="float16")
    full = PSKD(student(data))
    weights = [fit(o, data, tmp_path / str(n), updates=8) for n, o in enumerate((half, full))]
    assert half.memory.table.dtype == torch.float16
    index, probabilities = half.emitted[-1]
    assert torch.equal(half.memory.read(index)[0], probabilities.half().float())
    # Half the distance of two float16 numbers below 1 is 2.4e-4 of a target: not the same, but close.
    with pytest.raises(AssertionError):
        assert_equal(*weights)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=1e-3)


def test_micro_batches_fill_the_same_memory(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    tables = []
    for parts in (1, 5):
        objective = PSKD(student(data, norm="group"))
        fit(objective, data, tmp_path / str(parts), updates=5, accumulate=parts)
        assert not objective.kept
        tables.append(objective.memory.table)
    # Gradients are sums of float32 in another order.
    torch.testing.assert_close(*tables, rtol=0, atol=1e-5)
    assert tables[0].count_nonzero() == 200 * 10


# The model of the last epoch


def test_past_model_is_that_of_the_last_epoch() -> None:
    """Two updates an epoch; the student changes before every one of them."""
    generator = np.random.default_rng(0)
    labels = [0, 1, 2, 1]
    table = Table(np.zeros((4, 3)))
    objective = PSKD(table, alpha_T=0.9, past="model")
    objective.begin(plan(4, 3, epochs=3, updates=6))
    last: Floats | None = None
    for update in range(6):
        epoch = update // 2
        rows = [0, 2] if update % 2 == 0 else [3, 1]
        logits = generator.normal(size=(4, 3))
        table.set_logits(logits)
        some = batch([labels[row] for row in rows], rows, of=4, epoch=epoch)
        loss, gradient = loss_and_gradient(objective, some)

        q = onehot(labels, 3)
        if last is not None:
            alpha = 0.9 * (epoch + 1) / 3
            q = (1 - alpha) * q + alpha * softmax(last)
        expected = np.zeros((4, 3))
        expected[rows] = (softmax(logits) - q)[rows] / 2
        assert loss == pytest.approx(-(q * log_softmax(logits))[rows].sum(-1).mean(), rel=1e-6)
        np.testing.assert_allclose(gradient, expected, atol=1e-7)

        logits = generator.normal(size=(4, 3))  # the step
        table.set_logits(logits)
        objective.finish(some)
        if update % 2:
            last = logits
    assert not objective.kept


def test_past_model_predicts_in_eval_mode_and_gets_no_gradient(digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    objective = PSKD(student(data, dropout=0.5), past="model")
    fit(objective, data, tmp_path, updates=9)
    objective.train()
    some = next(objective.streams(data, 50, seed=0).batches(8, 9))  # type: ignore[union-attr]
    assert torch.equal(objective.teacher(some).logits, objective.teacher(some).logits)
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    assert int(objective.teacher.num_updates) == 2


@pytest.mark.parametrize(("samples", "size"), [(7, 3), (13, 3), (8, 2), (200, 50), (3, 7)])
def test_past_model_is_copied_when_an_epoch_ends(samples: int, size: int) -> None:
    """Also where updates an epoch are a fraction that floats cannot hold (7 / 3, 13 / 3)."""
    table = Table([[0.0, 1.0]])
    objective = PSKD(table, past="model")
    updates = 333
    objective.begin(plan(samples, 2, epochs=updates * size / samples, updates=updates))
    for update in range(updates):
        copied = objective.teacher.model.get_parameter("weight")
        before = copied.detach().clone()
        table.set_logits([[0.0, float(update)]])
        objective.finish(batch([0]))
        ended = (update + 1) * size // samples > update * size // samples
        assert torch.equal(copied, table.weight if ended else before)


# Restart


@pytest.mark.parametrize("past", ["predictions", "model"])
def test_resumes_with_what_it_remembers(digits: ImageData, tmp_path: Path, past: Any) -> None:
    """Killed in the middle of the third epoch."""
    data = small(digits)
    whole = PSKD(student(data), past=past)
    weights = fit(whole, data, tmp_path / "whole", updates=16, checkpoint_seconds=0.0)

    with pytest.raises(Killed):
        fit(PSKD(student(data), past=past), data, tmp_path / "killed", KillAt(11), updates=16, checkpoint_seconds=0.0)
    checkpoint = torch.load(tmp_path / "killed" / "fit" / "checkpoint.pt", weights_only=True)
    assert checkpoint["update"] == 10
    assert ("memory.table" if past == "predictions" else "teacher.num_updates") in checkpoint["objective"]

    resumed = PSKD(student(data, seed=5), past=past)
    assert_equal(fit(resumed, data, tmp_path / "killed", updates=16), weights)
    assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))
