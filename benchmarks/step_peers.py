"""The loops that training_step runs beside limbeck's, by hand for each method and torchdistill's for kd; their batches.

Each trains on the batches that it is handed, with SGD and the cosine schedule of limbeck's defaults, as anyone would
write it: no log, no checkpoint, no look at the result. What it returns is the time of a step.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from limbeck.data.samples import ImageData
from limbeck.data.semi_supervised import without_labels
from limbeck.data.stream import Stream

SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
ALPHA, TEMPERATURE = 0.9, 4.0
TAU, EMA, RATIO, ALIGNED = 0.95, 0.999, 0.999, 32


@dataclass
class Work:
    """What a loop trains, on what, and for how long.

    Attributes:
        student: trained in place.
        batches: number of an update -> its tensors, as the method wants them.
        updates: how many there are.
        skip: updates before the clock starts.
        teacher: of kd.
        labels: of ps-kd, int64 [N]: the truth of every sample.
        epochs: of ps-kd: over how many epochs its weight of the past grows.
        auxiliary: of shrinkmatch: the head of shrunk classes, trained in place.
        tau: of shrinkmatch: from which confidence on a label is certain.
        average: of shrinkmatch: the average of the student's weights, which the loop makes.
    """

    student: nn.Module
    batches: Callable[[int], tuple[Tensor, ...]]
    updates: int
    skip: int
    teacher: nn.Module | None = None
    labels: Tensor | None = None
    epochs: int = 1
    auxiliary: nn.Module | None = None
    tau: float = TAU
    average: nn.Module | None = None

    def schedule(self, update: int) -> float:
        """The factor of the learning rate."""
        return 0.5 * (1 + math.cos(math.pi * update / self.updates))

    def run(
        self, loss_of: Callable[[int], Tensor], after: Callable[[], None] = lambda: None, *more: nn.Parameter
    ) -> float:
        """Train, and return the seconds of a step."""
        optimizer = torch.optim.SGD([*self.student.parameters(), *more], **SGD)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        self.student.train()
        begin = 0.0
        for update in range(self.updates):
            loss = loss_of(update)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            after()
            if update == self.skip:
                begin = time.perf_counter()
        return (time.perf_counter() - begin) / (self.updates - 1 - self.skip)


def kd(work: Work) -> float:
    """Hinton's distillation; a batch is (images, labels, ...)."""
    student, teacher = work.student, work.teacher.eval()

    def loss_of(update: int) -> Tensor:
        image, label, *_ = work.batches(update)
        with torch.no_grad():
            teacher_logits = teacher(image).logits
        logits = student(image).logits
        soft = F.kl_div(
            F.log_softmax(logits / TEMPERATURE, 1),
            F.log_softmax(teacher_logits / TEMPERATURE, 1),
            log_target=True,
            reduction="batchmean",
        )
        return (1 - ALPHA) * F.cross_entropy(logits, label) + ALPHA * TEMPERATURE**2 * soft

    return work.run(loss_of)


def torchdistill_box(work: Work) -> float:
    """The same by torchdistill's box, on the batches of the hand-written loop, without data loader or log."""
    box = _box(work, {}, {})
    begin = 0.0
    for update in range(work.updates):
        image, label, *_ = work.batches(update)
        box.post_forward_process(loss=box.forward_process(image, label, None))
        if update == work.skip:
            begin = time.perf_counter()
    return (time.perf_counter() - begin) / (work.updates - 1 - work.skip)


def torchdistill_example(work: Work) -> float:
    """The same as in torchdistill's examples: its data loader, in this process, and the loss read at each update."""
    found = [work.batches(update)[:3] for update in range(work.updates)]
    image, label, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    images = torch.zeros(len(work.labels), *image.shape[1:])
    images[rows] = image
    loader = {
        "dataset_id": "train",
        "sampler": {"class_or_func": lambda data: rows.tolist()},
        "kwargs": {"batch_size": len(found[0][0]), "num_workers": 0},
    }
    box = _box(work, {"train": TensorDataset(images, work.labels)}, loader)
    begin, device = 0.0, torch.device("cpu")
    for update, (image, label, more) in enumerate(box.train_data_loader):
        loss = box.forward_process(image.to(device), label.to(device), more)
        box.post_forward_process(loss=loss)
        loss.item()
        if update == work.skip:
            begin = time.perf_counter()
    return (time.perf_counter() - begin) / (work.updates - 1 - work.skip)


def _box(work: Work, data: dict[str, Dataset], loader: dict[str, object]) -> Any:
    from torchdistill.core.distillation import DistillationBox

    loss = {
        "key": "KDLoss",
        "kwargs": {
            "student_module_path": ".",
            "student_module_io": "output",
            "teacher_module_path": ".",
            "teacher_module_io": "output",
            "temperature": TEMPERATURE,
            "alpha": 1 - ALPHA,
            "reduction": "batchmean",
        },
    }
    config = {
        "num_epochs": 1,
        "train_data_loader": loader,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
        "scheduler": {"key": "LambdaLR", "kwargs": {"lr_lambda": work.schedule}, "scheduling_step": 1},
    }
    teacher, student = Logits(work.teacher).eval(), Logits(work.student)
    box = DistillationBox(teacher, student, data, config, torch.device("cpu"), None, False, 1)
    box.pre_epoch_process(epoch=0)
    return box


class Logits(nn.Module):
    """A classifier whose output is its logits, which is what torchdistill's losses take."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self.model(image).logits


def ps_kd(work: Work) -> float:
    """Labels softened by what was said of the sample an epoch ago; a batch is (images, labels, rows, epochs)."""
    past = F.one_hot(work.labels).float()
    classes = past.shape[1]

    def loss_of(update: int) -> Tensor:
        image, label, rows, epoch = work.batches(update)
        alpha = (0.8 * (epoch + 1) / work.epochs).unsqueeze(1)
        target = (1 - alpha) * F.one_hot(label, classes) + alpha * past[rows]
        log_probabilities = F.log_softmax(work.student(image).logits, 1)
        past[rows] = log_probabilities.detach().float().exp()
        return -(target * log_probabilities).sum(1).mean()

    return work.run(loss_of)


def shrinkmatch(work: Work) -> float:
    """FixMatch with shrunk classes for the uncertain; a batch is (images, labels, weak views, strong views)."""
    student, auxiliary = work.student, work.auxiliary.train()
    work.average = average = copy.deepcopy(student).requires_grad_(False)
    means: list[Tensor] = []
    ratio = None

    def loss_of(update: int) -> Tensor:
        nonlocal ratio
        image, label, weak, strong = work.batches(update)
        output = student(torch.cat([image, weak, strong]))
        of_labeled, of_weak, of_strong = output.logits.split([len(image), len(weak), len(strong)])
        with torch.no_grad():
            p = of_weak.float().softmax(1)
            means[:] = [*means, p.mean(0)][-ALIGNED:]
            p = p / (torch.stack(means).mean(0) + 1e-6)
            p = p / p.sum(1, keepdim=True)
            ordered, order = p.sort(1, descending=True)
            top, first = ordered[:, 0], order[:, 0]
            certain = (top >= work.tau).float()
            ratio = certain.mean() if ratio is None else RATIO * ratio + (1 - RATIO) * certain.mean()
            below = ordered.flip(1).cumsum(1).flip(1)
            kept = ordered[:, :1] / (ordered[:, :1] + below) >= work.tau
            kept[:, :2] = False
            shrunk = kept.any(1)
            kept[:, 0] = True
            left_out = torch.zeros_like(kept).scatter(1, order, ~kept) & shrunk.unsqueeze(1)
            weight = top * shrunk * (1 - certain)
        of_certain = (-(p * F.log_softmax(of_strong, 1)).sum(1) * certain).mean()
        among_fewer = auxiliary(output.features[-len(strong) :]).masked_fill(left_out, -torch.inf)
        of_shrunk = (F.cross_entropy(among_fewer, first, reduction="none") * weight).mean()
        return F.cross_entropy(of_labeled, label) + of_certain + ratio * of_shrunk

    @torch.no_grad()
    def move_average() -> None:
        for old, new in zip(average.parameters(), student.parameters(), strict=True):
            old.lerp_(new, 1 - EMA)
        for old, new in zip(average.buffers(), student.buffers(), strict=True):
            old.copy_(new)

    return work.run(loss_of, move_average, *auxiliary.parameters())


def own_batches(data: ImageData, size: int, updates: int) -> Callable[[int], tuple[Tensor, ...]]:
    """Images, labels, rows and epochs by rows of tensors, in an order that is drawn now."""
    everything = data.train.fetch(torch.arange(len(data.train)))
    images, labels = everything["image"], everything["label"]
    epochs = range(-(-updates * size // len(labels)))
    order = torch.cat([torch.randperm(len(labels)) for _ in epochs])
    epoch = torch.arange(len(epochs)).repeat_interleave(len(labels))

    def batch(update: int) -> tuple[Tensor, ...]:
        at = slice(update * size, (update + 1) * size)
        rows = order[at]
        return images[rows], labels[rows], rows, epoch[at]

    return batch


def own_pairs(data: ImageData, size: int, updates: int) -> Callable[[int], tuple[Tensor, ...]]:
    """Labelled images, their labels, and seven times as many others, which are both views."""
    every = without_labels(data)
    labeled = own_batches(data, size, updates)
    unlabeled = own_batches(replace(data, train=every), 7 * size, updates)

    def batch(update: int) -> tuple[Tensor, ...]:
        image, label, *_ = labeled(update)
        other, *_ = unlabeled(update)
        return image, label, other, other

    return batch


def streamed(streams: Stream | dict[str, Stream], data: ImageData) -> Callable[[int], tuple[Tensor, ...]]:
    """The batches of limbeck."""
    place = torch.zeros(data.train.num_samples, dtype=torch.int64)
    place[data.train.indices] = torch.arange(len(data.train))

    def batch(update: int) -> tuple[Tensor, ...]:
        if isinstance(streams, Stream):
            found = streams.batch(update)
            return found["image"], found["label"], place[found["index"]], found["epoch"]
        labeled, unlabeled = streams["labeled"].batch(update), streams["unlabeled"].batch(update)
        return labeled["image"], labeled["label"], unlabeled["weak"], unlabeled["strong"]

    return batch
