from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data.load import load
from limbeck.methods.language.sft import SFT
from limbeck.models.build import build
from limbeck.stages.fit import Fit
from limbeck.stages.progress import Reporter
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context

from .tables import log_softmax, onehot, softmax, total
from .token_tables import TokenTable, random_case, token_batch


@pytest.mark.parametrize("seed", range(4))
def test_equation_and_gradient(seed: int) -> None:
    """-sum m log q(y) / sum m over shifted tokens, and dL/dz = (q - y) m / sum m."""
    s, _, labels = random_case(seed)
    student = TokenTable(s)
    terms = SFT(student).terms(token_batch(labels))
    assert list(terms) == ["ce"]
    loss = total(terms)
    loss.backward()
    expected, gradient, count = 0.0, np.zeros_like(s), (labels[:, 1:] >= 0).sum()
    for row in range(len(s)):
        for at in range(s.shape[1] - 1):
            if labels[row, at + 1] >= 0:
                y = int(labels[row, at + 1])
                expected -= log_softmax(s[row, at])[y] / count
                gradient[row, at] = (softmax(s[row, at]) - onehot([y], s.shape[2])[0]) / count
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(student.gradient(), gradient, atol=1e-14)


def test_nothing_to_predict_is_no_loss() -> None:
    student = TokenTable(np.ones((2, 3, 4)))
    loss = total(SFT(student).terms(token_batch(np.full((2, 3), -100))))
    loss.backward()
    assert loss.item() == 0
    assert not student.gradient().any()


def train(folder: Path, **settings: object) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    data = load("descriptions", seed=0, length=24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        objective = SFT(build("gpt", data.task, layers=1, width=16, heads=2))
    # Rows of different lengths, so that micro-batches hold different numbers of tokens.
    data.train.given = torch.arange(len(data.train)) % 20
    how = FitSettings(
        **{
            "updates": 6,
            "batch_size": 12,
            "accelerator": "cpu",
            "optimizer": {"name": "adamw", "lr": 1e-2},
            "log_every": 1,
            "evaluations": 1,
            **settings,
        }
    )
    fit = Fit("fit", objective, data, how)
    fit.run(folder, Context(folder.parent, "sft", seed=0, reporter=Reporter(quiet=True)))
    import json

    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    return {name: value.clone() for name, value in objective.student.state_dict().items()}, metrics


def test_micro_batches_give_the_same_training_and_the_first_norm_is_kept(tmp_path: Path) -> None:
    whole, metrics = train(tmp_path / "a" / "fit", clip_grad_norm=1.0)
    parts, of_parts = train(tmp_path / "b" / "fit", clip_grad_norm=1.0, accumulate=3)
    # float32 sums in another order, and AdamW's division by small second moments, over 6 updates.
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=2e-3, rtol=1e-3)
    assert metrics["initial_gradient_norm"] == pytest.approx(of_parts["initial_gradient_norm"], rel=1e-4)
    rows = (tmp_path / "a" / "fit" / "metrics.csv").read_text().splitlines()
    first = next(row for row in rows if ",train,gradient_norm," in row)
    assert float(first.rsplit(",", 1)[1]) == pytest.approx(metrics["initial_gradient_norm"], rel=1e-6)
    _, without = train(tmp_path / "c" / "fit")
    assert "initial_gradient_norm" not in without
