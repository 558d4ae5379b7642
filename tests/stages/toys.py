"""Small objectives with terms of every kind."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from limbeck.data.samples import ImageData
from limbeck.data.stream import Stream
from limbeck.losses.divergence import cross_entropy, forward_kl
from limbeck.losses.reduction import Mean
from limbeck.models import Classifier, build
from limbeck.stages.engine import Engine
from limbeck.stages.objective import Batch, Objective, Plan, Terms
from limbeck.teachers.ema import EMA


def small(data: ImageData, seed: int = 0, **options: object) -> Classifier:
    """A network without batch statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build("cnn", data.task, **{"width": 2, "norm": "none", **options})


class Toy(Objective):
    """Terms by name: ``all`` and ``few`` are means with counts of their own, ``scalar`` is a plain mean."""

    def __init__(self, student: Classifier, use: tuple[str, ...] = ("all",)) -> None:
        super().__init__()
        self.student = student
        self.use = use

    def terms(self, batch: Batch) -> Terms:
        logits = self.student(batch).logits
        losses = cross_entropy(logits, batch["label"], reduction="none")
        few = batch["label"] < 3
        count = few.sum(dtype=losses.dtype)
        made: Terms = {
            "all": Mean.of(losses),
            "few": Mean((losses * few).sum(), count),
            "bounded": Mean((logits.square().mean(1) * few).sum(), count),  # shares its count
            "scalar": 0.1 * logits.square().mean(),
            "none": Mean.of(losses, torch.zeros_like(few)),
        }
        self.keep(index_seen=batch["index"], probabilities=logits.softmax(1))
        return {name: made[name] for name in self.use}

    def after_update(self, batch: Batch) -> None:
        self.last_kept = {name: batch[name] for name in ("index_seen", "probabilities", "index")}


class MeanTeacher(Objective):
    """An EMA teacher that is part of the loss, and a count of updates in a buffer."""

    count: Tensor

    def __init__(self, student: Classifier, decay: float = 0.9) -> None:
        super().__init__()
        self.student = student
        self.decay = decay

    def begin(self, plan: Plan) -> None:
        self.ema = EMA(self.student, decay=self.decay)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def terms(self, batch: Batch) -> Terms:
        logits = self.student(batch).logits
        return {
            "ce": Mean.of(cross_entropy(logits, batch["label"], reduction="none"), batch["label"] < 7),
            "consistency": Mean.of(forward_kl(logits, self.ema(batch).logits, reduction="none")),
        }

    def after_update(self, batch: Batch) -> None:
        self.ema.update(self.student)
        self.count += 1


class TwoOptimizers(Objective):
    """The body steps at every update, the head at every second one, each on terms of its own."""

    updates: Tensor

    def __init__(self, student: Classifier) -> None:
        super().__init__()
        self.student = student
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        parameters = list(self.student.parameters())
        return {"body": parameters[:-2], "head": parameters[-2:]}

    def terms(self, batch: Batch) -> Terms:
        return {"ce": Mean.of(cross_entropy(self.student(batch).logits, batch["label"], reduction="none"))}

    def slow(self, batch: Batch) -> Terms:
        return {"size": self.student(batch).logits.square().mean()}

    def step(self, batch: Batch, engine: Engine) -> None:
        engine.minimise(batch, optimizer="body")
        if int(self.updates) % 2:
            engine.minimise(batch, terms="slow", optimizer="head")

    def after_update(self, batch: Batch) -> None:
        self.updates += 1


class TwoStreams(Objective):
    """Two streams of different lengths."""

    def __init__(self, student: Classifier) -> None:
        super().__init__()
        self.student = student

    def streams(self, data: ImageData, batch_size: int, seed: int) -> dict[str, Stream]:
        few = data.train.subset(torch.arange(50))
        return {
            "many": Stream(data.train, batch_size, seed, views={"image": "none"}, name="many"),
            "few": Stream(few, batch_size // 2, seed, views={"image": "none"}, name="few"),
        }

    def terms(self, batch: Batch) -> Terms:
        terms: Terms = {}
        for name in ("many", "few"):
            part = batch[name]
            assert isinstance(part, dict)
            logits = self.student(part).logits
            terms[name] = Mean.of(cross_entropy(logits, part["label"], reduction="none"))
        return terms
