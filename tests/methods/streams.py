"""A small corrupted stream and a source model for it."""

from pathlib import Path
from typing import Any

import torch

from limbeck.data.corrupted import CorruptedData, corruptions
from limbeck.models import Classifier, build
from limbeck.stages.objective import Batch
from limbeck.stages.progress import Reporter
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context
from limbeck.stages.stream import Adapt, Adapter, online

ORDER = ["gaussian_noise", "contrast", "invert_gamma"]


def stream(**options: Any) -> CorruptedData:
    """Digits under three corruptions, two rounds of 80 images in batches of 40: 12 batches."""
    given: dict[str, Any] = {"order": ORDER, "rounds": 2, "batch_size": 40, "test_size": 80, "severity": 5}
    return corruptions(seed=0, dataset={"name": "digits", "view": "none", "validation": 100}, **{**given, **options})


def source(data: CorruptedData, updates: int = 150) -> Classifier:
    """A small network with batch normalisation, trained for a second on the clean digits."""
    torch.manual_seed(0)
    model = build("cnn", data.task, width=4)
    assert isinstance(model, Classifier)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(updates):
        batch = data.train.fetch(torch.randint(len(data.train), (64,)))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch).logits, batch["label"]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def context(folder: Path, reporter: Reporter | None = None, seed: int = 0) -> Context:
    return Context(folder=folder, method="test", seed=seed, reporter=reporter or Reporter(quiet=True))


def adapted(
    adapter: Adapter,
    model: Classifier,
    data: CorruptedData,
    folder: Path,
    settings: FitSettings | None = None,
    reporter: Reporter | None = None,
) -> Adapt:
    """A finished stage."""
    stage = Adapt("adapt", adapter, model, data, settings or online(40, "adam", 1e-2, 0.9))
    stage.run(folder, context(folder, reporter))
    return stage


def unlabelled(data: CorruptedData, number: int) -> Batch:
    return {name: value for name, value in data.stream.batch(number).items() if name != "label"}


def step(adapter: Adapter, batch: Batch, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """One update in a loop of one's own; returns the answer."""
    terms = adapter.terms(batch)
    optimizer.zero_grad()
    sum(term for term in terms.values() if isinstance(term, torch.Tensor)).backward()  # type: ignore[union-attr]
    optimizer.step()
    adapter.finish(batch)
    return adapter.answer
