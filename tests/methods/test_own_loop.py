"""Objectives without limbeck's loop: plain PyTorch, with the same result to the last bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from limbeck.data.random import derive
from limbeck.data.samples import ImageData
from limbeck.data.stream import Stream
from limbeck.losses.reduction import Mean
from limbeck.methods.classification.kd import KD
from limbeck.methods.classification.ps_kd import PSKD
from limbeck.models.classifier import Classifier
from limbeck.stages.digest import digest
from limbeck.stages.evaluation import predict_logits, quality
from limbeck.stages.objective import Objective, Plan
from limbeck.teachers import Frozen
from tests.methods.tables import assert_equal, fit, small, student

OBJECTIVES: dict[str, Callable[[ImageData], Objective]] = {
    "kd": lambda data: KD(student(data), Frozen(student(data, seed=1))),
    "ps-kd": lambda data: PSKD(student(data)),
    "ps-kd with past models": lambda data: PSKD(student(data), past="model"),
}
SGD: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


def update(objective: Objective, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> None:
    terms = objective.terms(batch)
    loss = torch.stack([term.value if isinstance(term, Mean) else term for term in terms.values()]).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    objective.finish(batch)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_plain_loop_equals_the_engine(name: str, digits: ImageData, tmp_path: Path) -> None:
    data = small(digits)
    objective = OBJECTIVES[name](data)
    teachers = {key: digest(teacher) for key, teacher in objective.teachers().items()}
    objective.begin(Plan(num_samples=data.train.num_samples, num_classes=10, updates=12, epochs=3.0))
    objective.train()
    # Fused as the engine takes it on the CPU: the same sums in another order would differ in the last bit.
    optimizer = torch.optim.SGD((p for p in objective.parameters() if p.requires_grad), **SGD, fused=True)
    stream = objective.streams(data, 50, derive(0, "fit"))
    assert isinstance(stream, Stream)
    for batch in stream.batches(0, 12):
        update(objective, optimizer, batch)

    how: dict[str, Any] = {"optimizer": {"name": "sgd", **SGD}, "schedule": {"name": "constant"}}
    by_engine = fit(OBJECTIVES[name](data), data, tmp_path, updates=12, **how)
    assert_equal(dict(objective.student.state_dict()), by_engine)
    assert {key: digest(teacher) for key, teacher in objective.teachers().items()} == teachers
    assert not objective.kept


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loop_over_a_data_loader(name: str, digits: ImageData, nearest_mean: Classifier) -> None:
    """Batches of another length at the end of an epoch, another optimiser, another order."""
    data = small(digits)
    objective = OBJECTIVES[name](data)
    if isinstance(objective, KD):
        objective = KD(objective.student, Frozen(nearest_mean))
    loader = DataLoader(data.train, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(0))
    before = quality(predict_logits(objective.student, data.validation))
    objective.begin(Plan(data.train.num_samples, 10, updates=6 * len(loader), epochs=6))
    objective.train()
    optimizer = torch.optim.Adam((p for p in objective.parameters() if p.requires_grad), lr=0.01)
    for epoch in range(6):
        for batch in loader:
            update(objective, optimizer, {**batch, "epoch": torch.full_like(batch["label"], epoch)})
    after = quality(predict_logits(objective.student, data.validation))
    assert after["nll"] < before["nll"]
    assert after["accuracy"] > before["accuracy"]
    if isinstance(objective, PSKD) and objective.past == "model":
        assert int(objective.teacher.num_updates) == 6
