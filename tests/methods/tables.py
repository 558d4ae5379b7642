"""Students whose logits are known: image ``i`` is one-hot at pixel ``i``, so the weights are the logits."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from limbeck.data.samples import ImageData
from limbeck.losses.reduction import Mean
from limbeck.models import Classifier, build
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Objective, Plan, Terms
from limbeck.stages.progress import Reporter
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context

Floats = NDArray[np.float64]


class Table(Classifier):
    """Gives for image ``i`` row ``i`` of ``logits``, exactly, in float64."""

    def __init__(self, logits: ArrayLike, classes: Sequence[str] | None = None) -> None:
        rows = torch.tensor(np.asarray(logits), dtype=torch.float64)
        linear = nn.Linear(rows.shape[0], rows.shape[1], bias=False, dtype=torch.float64)
        names = [str(number) for number in range(rows.shape[1])] if classes is None else classes
        super().__init__(nn.Sequential(nn.Flatten(), linear), names, channels=1)
        self.weight = linear.weight
        self.set_logits(logits)

    def set_logits(self, logits: ArrayLike) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.tensor(np.asarray(logits), dtype=torch.float64).T)

    def gradient(self) -> Floats:
        """Gradient with respect to the logits ``[N, C]``."""
        assert self.weight.grad is not None
        found: Floats = self.weight.grad.T.numpy()
        return found


def batch(labels: Sequence[int], rows: Sequence[int] | None = None, of: int | None = None, epoch: int = 0) -> Any:
    """The images ``rows`` of ``of``; all of them in order by default."""
    rows = list(range(len(labels))) if rows is None else rows
    count = len(labels) if of is None else of
    return {
        "image": torch.eye(count)[list(rows)].view(len(rows), 1, 1, count),
        "label": torch.tensor(labels),
        "index": torch.tensor(rows),
        "epoch": torch.full((len(rows),), epoch),
    }


def plan(samples: int, classes: int, epochs: float = 10, updates: int | None = None) -> Plan:
    return Plan(num_samples=samples, num_classes=classes, updates=updates or int(epochs), epochs=epochs)


def value(term: Tensor | Mean) -> Tensor:
    return term.value if isinstance(term, Mean) else term


def total(terms: Terms) -> Tensor:
    return torch.stack([value(term) for term in terms.values()]).sum()


def softmax(logits: ArrayLike) -> Floats:
    """In float64, by the definition."""
    z = np.asarray(logits, dtype=np.float64)
    powers = np.exp(z - z.max(axis=-1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def log_softmax(logits: ArrayLike) -> Floats:
    z = np.asarray(logits, dtype=np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    found: Floats = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return found


def kl(teacher: Floats, student: Floats, temperature: float = 1.0) -> Floats:
    """KL(softmax(t / T) || softmax(s / T)) a sample."""
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    values: Floats = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    return values


def onehot(labels: Sequence[int], classes: int) -> Floats:
    rows: Floats = np.eye(classes)[list(labels)]
    return rows


def student(data: ImageData, seed: int = 0, **arguments: Any) -> Classifier:
    """A small network with weights of its own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build("cnn", data.task, **{"width": 4, **arguments})


def small(data: ImageData, count: int = 200) -> ImageData:
    """The first training samples only."""
    return dataclasses.replace(data, train=data.train.subset(range(count)))


def fit(
    objective: Objective, data: ImageData, folder: Path, reporter: Reporter | None = None, **settings: Any
) -> dict[str, Tensor]:
    """Train by the engine; the student's weights at the end."""
    how = FitSettings(**{"updates": 24, "batch_size": 50, "accelerator": "cpu", **settings})
    context = Context(folder, "test", seed=0, reporter=reporter or Reporter(quiet=True))
    Fit("fit", objective, data, how).run(folder / "fit", context)
    return {name: tensor.clone() for name, tensor in objective.student.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
