"""What limbeck adds to a training step: kd through its loop against a loop written by hand.

Both train the same student from the same weights on the same batches with the same teacher; the losses are
asserted equal first. limbeck logs every 50 updates and saves a checkpoint every 60 seconds; the hand-written loop
does neither. The time of one checkpoint is measured apart and its share, step * save / 60, is added to limbeck's
step, as no timed stretch is long enough to hold one. Rounds are interleaved in one process.

    python benchmarks/step_overhead.py [--rounds 10] [--threads N]
"""

import copy
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import options, quotient, save
from limbeck.data.load import load
from limbeck.data.random import derive
from limbeck.data.samples import ImageData, Samples
from limbeck.data.stream import Stream
from limbeck.methods.classification.kd import KD
from limbeck.models import build
from limbeck.stages.checkpoint import Checkpoint
from limbeck.stages.fit import Fit
from limbeck.stages.log import Log
from limbeck.stages.objective import Batch
from limbeck.stages.processes import make_fabric
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context
from limbeck.teachers.frozen import Frozen


class TimedKD(KD):
    """KD that notes when each update is done, and its loss."""

    def after_update(self, batch: Batch) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def limbeck_seconds(student: nn.Module, teacher: nn.Module, data: ImageData, fit: FitSettings, skip: int) -> float:
    objective = TimedKD(student, Frozen(teacher, classes=data.classes))
    objective.times = []
    with tempfile.TemporaryDirectory() as folder:
        Fit("fit", objective, data, fit).run(Path(folder), Context(Path(folder), "kd", seed=0))
    return (objective.times[-1] - objective.times[skip]) / (len(objective.times) - 1 - skip)


def checkpoint_seconds(student: nn.Module, teacher: nn.Module, data: ImageData, fit: FitSettings) -> float:
    """Median time of saving one checkpoint, momentum buffers included."""
    objective = KD(student, Frozen(teacher, classes=data.classes))
    with tempfile.TemporaryDirectory() as folder:
        work = Fit("fit", objective, data, fit)
        engine, streams, _ = work._set_up(make_fabric(fit), seed=0)
        engine.update(streams[""].batch(0))
        log = Log(Path(folder), engine.fabric, [])
        checkpoint = Checkpoint(Path(folder) / "checkpoint.pt", engine, log, objective)
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            checkpoint.save(1, 0.0)
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def by_hand(
    student: nn.Module, teacher: nn.Module, data: ImageData, fit: FitSettings, skip: int, order: Tensor | None = None
) -> float:
    """The same training as anyone would write it, without log and checkpoint; ``order`` gives the batches."""
    images = data.train.fetch(torch.arange(len(data.train)))["image"]
    labels = data.train.labels
    total, size = fit.updates, fit.batch_size
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda u: 0.5 * (1 + math.cos(math.pi * u / total)))
    student.train()
    teacher.eval()
    epochs = -(-total * size // len(labels))
    if order is None:
        order = torch.cat([torch.randperm(len(labels)) for _ in range(epochs)])
    begin = 0.0
    for update in range(total):
        rows = order[update * size : (update + 1) * size]
        image, label = images[rows], labels[rows]
        with torch.no_grad():
            teacher_logits = teacher(image).logits
        logits = student(image).logits
        hard = F.cross_entropy(logits, label)
        soft = F.kl_div(
            F.log_softmax(logits / 4, 1), F.log_softmax(teacher_logits / 4, 1), log_target=True, reduction="batchmean"
        )
        loss = 0.1 * hard + 0.9 * 16 * soft
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if update == skip:
            begin = time.perf_counter()
    return (time.perf_counter() - begin) / (total - 1 - skip)


def assert_equal(student: nn.Module, teacher: nn.Module, data: ImageData, fit: FitSettings) -> None:
    """Both loops end with the same weights when they get the same batches."""
    short = FitSettings(updates=5, batch_size=fit.batch_size, evaluations=1)
    ours, theirs = copy.deepcopy(student), copy.deepcopy(student)
    limbeck_seconds(ours, teacher, data, short, skip=0)
    stream = Stream(data.train, short.batch_size, derive(0, "fit"), views={"image": "none"})
    index = torch.cat([stream.batch(number)["index"] for number in range(short.updates)])
    position = {int(i): p for p, i in enumerate(data.train.indices)}
    order = torch.tensor([position[int(i)] for i in index])
    by_hand(theirs, teacher, data, short, 0, order)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def noise(size: int, count: int = 1024) -> ImageData:
    """Grey images without a meaning: speed does not depend on it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, size, size, generator=generator)
    labels = torch.arange(count) % 10
    samples = Samples(images, labels, [str(c) for c in range(10)])
    few = samples.subset(range(64))
    return ImageData(samples, few, few, None, samples.classes, view="none")


def main() -> None:
    arguments = options(__doc__, rounds=10).parse_args()
    torch.set_num_threads(arguments.threads)
    digits = load("digits", 0, view="none")
    grey = noise(28)
    cases = [
        ("kd, digits, cnn width 8 (teacher 32), batch 64", digits, "cnn", {"width": 8}, {"width": 32}, 64, 1000, 100),
        (
            "kd, 28x28, ResNet-18 (teacher ResNet-18), batch 128",
            grey,
            "torchvision",
            {"model": "resnet18"},
            {"model": "resnet18"},
            128,
            14,
            3,
        ),
    ]
    rows = []
    for case, data, name, student_options, teacher_options, batch, updates, skip in cases:
        torch.manual_seed(0)
        student = build(name, data.task, **student_options)
        teacher = build(name, data.task, **teacher_options)
        fit = FitSettings(updates=updates, batch_size=batch, evaluations=1)
        assert_equal(student, teacher, data, fit)
        ours, peer = [], []
        for number in range(arguments.rounds):
            for measure, seconds in [(limbeck_seconds, ours), (by_hand, peer)][:: 1 if number % 2 == 0 else -1]:
                seconds.append(measure(copy.deepcopy(student), teacher, data, fit, skip))
        saving = checkpoint_seconds(copy.deepcopy(student), teacher, data, fit)
        ours = [step * (1 + saving / fit.checkpoint_seconds) for step in ours]
        tiny = "digits" in case
        extra = statistics.median(a - b for a, b in zip(ours, peer, strict=True)) * 1e3
        ratio = quotient(ours, peer)
        rows.append(
            {
                "case": case,
                "peer_name": "hand-written loop, no log, no checkpoint",
                "ours": ours,
                "peer": peer,
                "unit": "seconds a step",
                "ratio": ratio,
                "extra_ms": extra,
                "goal": "at most 0.2 ms more a step" if tiny else "ratio at most 1.03",
                "holds": extra <= 0.2 if tiny else ratio["median"] <= 1.03,
            }
        )
        print(
            f"{case}: limbeck {1e3 * statistics.median(ours):.3f} ms, by hand {1e3 * statistics.median(peer):.3f} ms, "
            f"ratio {ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}], {extra:+.3f} ms a step"
        )
    save("step_overhead", rows, arguments.threads)


if __name__ == "__main__":
    main()
