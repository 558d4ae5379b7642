"""What a model answered to a stream of test batches: kept as it goes, measured and stored at the end."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from limbeck.data.corrupted import CorruptedStream
from limbeck.metrics.classification import summary
from limbeck.stages.evaluation.shipped import as_shipped
from limbeck.stages.files import write_atomically

STREAM = "stream.safetensors"
"""What a pass over a stream left: every answer in the order of the stream, and answers on the clean images."""


class Pass(NamedTuple):
    """What a pass over a stream gave; logits float32 ``[., C]``, the rest int64, all on the CPU.

    Attributes:
        logits: the answers, in the order of the stream.
        label: the true classes.
        index: which image.
        domain: which entry of the order.
        round: which round, from 0.
        update: which batch, from 0.
        clean_logits: answers of the model after the stream to the clean images.
        clean_label: their true classes.
        seconds: how long the pass took.
    """

    logits: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    domain: Tensor
    round: Tensor
    update: Tensor
    clean_logits: Tensor
    clean_label: Tensor
    seconds: float


class Answers:
    """The answers so far, on the CPU."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def add(self, logits: Tensor) -> None:
        """The answer to the next batch."""
        self.parts.append(logits.float().cpu())

    @property
    def last(self) -> Tensor:
        """The answer to the batch that was added last."""
        return self.parts[-1]

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return {"logits": torch.cat(self.parts)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a checkpoint."""
        self.parts = [state["logits"]]


def gathered(stream: CorruptedStream, answers: Answers, model: nn.Module, seconds: float) -> Pass:
    """All answers of a finished stream, and those of ``model`` as it now is to the clean images."""
    visits = [stream.place(number) for number in range(len(stream))]
    batches = [stream.positions(number) for number in range(len(stream))]
    sizes = torch.tensor([len(positions) for positions in batches])
    every = torch.cat(batches)

    def spread(values: list[int]) -> Tensor:
        return torch.tensor(values).repeat_interleave(sizes)

    clean, labels = [], []
    with as_shipped(model) as place:
        for batch in stream.clean():
            clean.append(model({"image": batch["image"].to(place)}).logits.float().cpu())
            labels.append(batch["label"])
    return Pass(
        logits=torch.cat(answers.parts),
        label=stream.samples.labels[every],
        index=stream.samples.indices[every],
        domain=spread([visit.domain for visit in visits]),
        round=spread([visit.round for visit in visits]),
        update=spread(list(range(len(stream)))),
        clean_logits=torch.cat(clean),
        clean_label=torch.cat(labels),
        seconds=seconds,
    )


def write(path: Path, found: Pass, classes: Sequence[str], order: Sequence[str]) -> None:
    """Store a pass, with the names that its numbers stand for.

    Raises:
        LimbeckError: the disk is full.
    """
    tensors = {name: value for name, value in found._asdict().items() if name != "seconds"}
    metadata = {"classes": json.dumps(classes), "order": json.dumps(order), "seconds": repr(found.seconds)}
    stored = safetensors.torch.save(tensors, metadata)
    write_atomically(path, lambda part: part.write_bytes(stored))


def read(path: Path) -> Pass:
    """What :func:`write` stored."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in Pass._fields if name != "seconds"}
        return Pass(**tensors, seconds=float(file.metadata()["seconds"]))


def errors(answers: Pass, stream: CorruptedStream) -> dict[str, float]:
    """The metrics of a pass.

    Returns:
        What :func:`limbeck.metrics.classification.summary` says of all answers, ``error`` (1 - accuracy),
        ``error/DOMAIN``, ``error/round-N`` (from 1) and ``clean/error``, on the clean images after the stream.
    """
    metrics = summary(answers.logits, answers.label)
    wrong = (answers.logits.argmax(-1) != answers.label).double()
    metrics["error"] = float(wrong.mean())
    for number, domain in enumerate(stream.order):
        # A domain may come several times in a round.
        same = torch.tensor([name == domain for name in stream.order])
        if stream.order.index(domain) == number:
            metrics[f"error/{domain}"] = float(wrong[same[answers.domain]].mean())
    for number in range(stream.rounds):
        metrics[f"error/round-{number + 1}"] = float(wrong[answers.round == number].mean())
    metrics["clean/error"] = float((answers.clean_logits.argmax(-1) != answers.clean_label).double().mean())
    return metrics
