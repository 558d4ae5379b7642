import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.load import load
from limbeck.errors import LimbeckError
from limbeck.methods.language.lm_kd import LMKD
from limbeck.methods.language.sft import SFT
from limbeck.methods.language.taid import TAID
from limbeck.models.build import build
from limbeck.stages.fit import Fit
from limbeck.stages.progress import Reporter
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context
from limbeck.teachers.frozen import Frozen

from .tables import Floats, log_softmax, plan, softmax, total, value
from .token_tables import TokenTable, random_case, token_batch


def objective(s: Any, t: Any, updates: int = 100, **options: Any) -> tuple[TAID, TokenTable]:
    student = TokenTable(s)
    made = TAID(student, Frozen(TokenTable(t)), **options)
    made.begin(plan(1, 0, updates=updates))
    return made.train(), student


def entropy(p: Floats) -> Floats:
    found: Floats = -(p * np.log(p)).sum(-1)
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.0, 0.2, 0.4, 1.0]))
def test_equation_and_gradient(seed: int, t: float) -> None:
    """Cross-entropy to p_t, and dL/dz_s = (q - p_t) m / sum m."""
    s, z, labels = random_case(seed)
    made, student = objective(s, z, t_start=t)
    loss = total(made.terms(token_batch(labels)))
    loss.backward()
    share, rest = (float(number) for number in (np.float32(t), np.float32(1) - np.float32(t)))  # t is float32
    q, p = softmax(s[:, :-1]), softmax(rest * s[:, :-1] + share * z[:, :-1])
    valid = labels[:, 1:] >= 0
    expected = -(p * log_softmax(s[:, :-1])).sum(-1)[valid].mean()
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    gradient = np.zeros_like(s)
    gradient[:, :-1] = (q - p) * valid[..., None] / valid.sum()
    np.testing.assert_allclose(student.gradient(), gradient, atol=1e-12)


def test_worked_token() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    for t, expected in ((0.4, 0.968196), (1.0, 0.886941), (0.0, 1.029653)):
        made, _ = objective(np.log([[q, q]]), np.log([[p, p]]), t_start=t)
        # Half a unit of the last decimal given, and t in float32.
        assert value(made.terms(token_batch([[0, 1]]))["taid"]).item() == pytest.approx(expected, abs=6e-7)


def test_limits() -> None:
    s, z, labels = random_case(5)
    batch = token_batch(labels)
    valid = labels[:, 1:] >= 0
    made, student = objective(s, z, t_start=0.0)
    loss = total(made.terms(batch))
    loss.backward()
    # t = 0: the student's own entropy, and nothing to learn.
    assert loss.item() == pytest.approx(entropy(softmax(s[:, :-1]))[valid].mean(), rel=1e-12)
    assert np.abs(student.gradient()).max() < 1e-16
    # t = 1: the forward KL plus the teacher's entropy.
    forward = total(LMKD(TokenTable(s), Frozen(TokenTable(z))).terms(batch)).item()
    constant = entropy(softmax(z[:, :-1]))[valid].mean()
    at_one = total(objective(s, z, t_start=1.0)[0].terms(batch)).item()
    assert at_one == pytest.approx(forward + constant, rel=1e-10)
    # distil_ratio towards 0: plain training on the text.
    hard = total(SFT(TokenTable(s)).terms(batch)).item()
    mixed = objective(s, z, t_start=1.0, distil_ratio=0.25)[0].terms(batch)
    assert total(mixed).item() == pytest.approx(0.75 * hard + 0.25 * at_one, rel=1e-10)
    with pytest.raises(LimbeckError, match="distil_ratio is 0"):
        objective(s, z, distil_ratio=0.0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.floats(-100, 100))
def test_shifts_and_ignored_tokens_change_nothing(seed: int, shift: float) -> None:
    s, z, labels = random_case(seed)
    reference = total(objective(s, z)[0].terms(token_batch(labels))).item()
    moved = total(objective(s + shift, z - shift)[0].terms(token_batch(labels))).item()
    assert moved == pytest.approx(reference, rel=1e-10)
    ignored = np.concatenate([(labels[:, 1:] < 0), np.ones((len(s), 1), dtype=bool)], axis=1)[..., None]
    other = total(objective(s + 3 * ignored, z * (1 - 2 * ignored))[0].terms(token_batch(labels))).item()
    assert other == reference


def test_t_moves_by_the_loss_of_the_whole_update() -> None:
    """Micro-batches with different numbers of tokens: one step, from the mean over all of them."""
    s, z, labels = random_case(6, rows=4)
    batch = token_batch(labels)
    states = []
    for parts in (1, 2, 4):
        made, student = objective(s, z, alpha=0.3)
        seen = []
        for factor in (1.0, 0.7, 0.5):
            with torch.no_grad():
                student.weight.copy_(factor * torch.tensor(s))
            for part in range(parts):
                made.terms({name: tensor.chunk(parts)[part] for name, tensor in batch.items()})
            made.finish(batch)
            seen.append((made.interpolation.t.item(), made.interpolation.previous.item()))
        assert int(made.interpolation.updates) == 3
        states.append(seen)
    assert states[0] == states[1] == states[2]
    assert states[0][2][0] > states[0][1][0] > states[0][0][0] == pytest.approx(0.4)
    first = total(objective(s, z)[0].terms(batch)).item()
    assert states[0][0][1] == pytest.approx(first, rel=1e-6)  # remembered in float32


def test_measuring_the_student_leaves_t_alone_and_training_ends_at_the_teacher() -> None:
    s, z, labels = random_case(7)
    batch = token_batch(labels)
    made, _ = objective(s, z, updates=50, alpha=0.0)
    made.eval()
    made.terms(batch)
    made.finish(batch)
    assert int(made.interpolation.updates) == 0
    made.train()
    for _ in range(50):
        made.terms(batch)
        made.finish(batch)
    # The floor of the last update, number 49 of 50.
    assert made.interpolation.t.item() == pytest.approx(0.4 + 0.6 * 49 / 50, abs=1e-6)


def test_first_gradient_is_smaller_than_that_of_the_forward_kl() -> None:
    """Of a new, near-uniform student, about t_start times."""
    data = load("descriptions", seed=0, length=24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = build("gpt", data.task, layers=1, width=16, heads=2)
        student = build("gpt", data.task, layers=1, width=16, heads=2)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(4)  # a teacher with opinions
    norms = []
    for made in (TAID(student, Frozen(teacher)), LMKD(student, Frozen(teacher))):
        made.begin(plan(1, 0))
        loss = total(made.terms(data.train.fetch(torch.arange(16))))
        gradients = torch.autograd.grad(loss, list(student.parameters()))
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item())
    assert 0.2 * norms[1] < norms[0] <= 0.6 * norms[1]


def train(folder: Path, **how: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    """A short training on rows with different numbers of tokens: the student, and t update by update."""
    data = load("descriptions", seed=0, length=16)
    data.train.given = torch.arange(len(data.train)) % 14
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher, student = (build("gpt", data.task, layers=1, width=16, heads=2) for _ in range(2))
    made = TAID(student, Frozen(teacher), alpha=0.2)
    optimizer = {"name": "sgd", "lr": 0.5}
    common = {"updates": 5, "batch_size": 12, "accelerator": "cpu", "optimizer": optimizer, "log_every": 1}
    fit = Fit("fit", made, data, FitSettings(**{**common, "evaluations": 1, **how}))
    fit.run(folder, Context(folder.parent, "taid", seed=0, reporter=Reporter(quiet=True)))
    with (folder / "metrics.csv").open(newline="") as file:
        t = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "t"]
    return dict(fit.load(folder).state_dict()), t


# Fabric's own: forking beside the threads of a test run.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_micro_batches_and_processes_end_where_one_does(tmp_path: Path) -> None:
    # In a forked process first: after it, this one may have threads.
    two, t_of_two = train(tmp_path / "two" / "fit", devices=2, strategy="ddp_fork")
    one, t = train(tmp_path / "one" / "fit")
    parts, t_of_parts = train(tmp_path / "parts" / "fit", accumulate=3)
    assert t == sorted(t)
    assert t[-1] > t[0] == pytest.approx(0.4)
    # Sums of float32 in another order.
    assert t_of_two == pytest.approx(t, abs=1e-6)
    assert t_of_parts == pytest.approx(t, abs=1e-6)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(parts[name], tensor, atol=1e-5, rtol=1e-4)
