"""Steps of kd and taid in bfloat16 on an accelerator: limbeck against hand-written loops, and the teacher's share.

kd trains a ResNet-18 from a ResNet-50 on images of 224 x 224, taid a small Llama from a larger one on rows of 512
tokens of 20,000 words. Both sides train the same student from the same weights on the same random batches; that they
end with the same weights after three updates in full precision is asserted first. The hand-written loops log and save
nothing. Rounds are interleaved in one process.

    python benchmarks/accelerator.py [--rounds 5] [--device cuda]

Without an accelerator it says so and measures nothing; ``--device cpu`` tries it with small sizes and saves nothing.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import options, quotient, save, show
from limbeck.data.data import Data
from limbeck.data.random import derive
from limbeck.data.samples import ImageData, Samples
from limbeck.data.stream import Stream
from limbeck.data.text import TextData, TokenSamples
from limbeck.methods.classification.kd import KD
from limbeck.methods.language.taid import TAID
from limbeck.models import build
from limbeck.models.text_task import TextTask, characters
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Objective
from limbeck.stages.progress import Reporter
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context
from limbeck.teachers.frozen import Frozen

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A method, its models, data and batch size.

    Attributes:
        name: of the case.
        data: what is trained on.
        batch_size: samples an update.
        models: makes student and teacher, always with the same weights.
        objective: what limbeck fits, of both.
        loss: what the hand-written loop minimises, of student, teacher's output and batch.
    """

    name: str
    data: Data
    batch_size: int
    models: Callable[[], tuple[nn.Module, nn.Module]]
    objective: Callable[[nn.Module, nn.Module], Objective]
    loss: Callable[[nn.Module, Tensor, Batch], Tensor]


def kd_loss(student: nn.Module, teacher_logits: Tensor, batch: Batch) -> Tensor:
    """Hinton's distillation with limbeck's defaults."""
    logits = student(batch).logits.float()
    log_q, log_p = (F.log_softmax(z / 4, 1) for z in (logits, teacher_logits.float()))
    soft = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    return 0.1 * F.cross_entropy(logits, batch["label"]) + 0.9 * 16 * soft


def taid_loss(student: nn.Module, teacher_logits: Tensor, batch: Batch) -> Tensor:
    """TAID at t = 0.4 on whole logits."""
    logits = student(batch).logits[:, :-1].float()
    target = torch.lerp(logits.detach(), teacher_logits[:, :-1].float(), 0.4).softmax(-1)
    return -(target * logits.log_softmax(-1)).sum(-1).mean()


def images(size: int, count: int) -> ImageData:
    """Noise of a hundred classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    samples = Samples(pixels, torch.arange(count) % 100, [str(c) for c in range(100)])
    few = samples.subset(range(100))
    return ImageData(samples, few, few, None, samples.classes, view="none")


def texts(length: int, words: int, count: int) -> TextData:
    """Noise of words that are one character each."""
    task = TextTask(characters(map(chr, range(0x4E00, 0x4E00 + words))), length)
    tokens = torch.randint(4, task.size, (count * length,), generator=torch.Generator().manual_seed(0))
    starts, lengths = torch.arange(count) * length, torch.full((count,), length)
    rows = TokenSamples(tokens, starts, lengths, pad_id=task.pad_id)
    few = TokenSamples(tokens, starts[:4], lengths[:4], pad_id=task.pad_id)
    return TextData(rows, few, few, None, (), task)


def cases(small: bool) -> list[Case]:
    pictures = images(32, 128) if small else images(224, 2048)
    rows = texts(24, 500, 64) if small else texts(512, 20_000, 1024)
    shape = [(1, 16, 2), (2, 32, 2)] if small else [(8, 512, 8), (16, 1024, 16)]

    def resnets() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        names = ("resnet18", "resnet18" if small else "resnet50")
        student, teacher = (build("torchvision", pictures.task, model=name) for name in names)
        return student, teacher

    def llamas() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        keys = ("layers", "width", "heads")
        student, teacher = (
            build("gpt", rows.task, architecture="llama", **dict(zip(keys, values, strict=True))) for values in shape
        )
        return student, teacher

    def kd(student: nn.Module, teacher: nn.Module) -> Objective:
        return KD(student, Frozen(teacher, classes=pictures.classes))

    def taid(student: nn.Module, teacher: nn.Module) -> Objective:
        return TAID(student, Frozen(teacher), alpha=0.0, t_end=0.4)  # t stays where the other loop has it

    return [
        Case("kd, ResNet-18 from ResNet-50, 224 x 224", pictures, 16 if small else 128, resnets, kd, kd_loss),
        Case("taid, Llama of 8 layers from one of 16", rows, 4 if small else 16, llamas, taid, taid_loss),
    ]


class Clock(Reporter):
    """Notes when updates are done on the device too: only those asked for, as waiting costs."""

    def __init__(self, device: torch.device, *updates: int) -> None:
        super().__init__(quiet=True)
        self.device, self.updates, self.times = device, updates, list[float]()

    def advance(self, done: int, loss: float | None) -> None:
        """Wait for the device and note the time, after the updates asked for."""
        if done in self.updates:
            wait(self.device)
            self.times.append(time.perf_counter())


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def settings(case: Case, device: torch.device, updates: int, precision: str) -> FitSettings:
    return FitSettings(
        updates=updates,
        batch_size=case.batch_size,
        evaluations=1,
        optimizer={"name": "sgd", "lr": 0.01, "momentum": 0.9},
        schedule={"name": "constant"},
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1,
        precision=precision,
        checkpoint_seconds=1e9,
    )


def limbeck_step(case: Case, device: torch.device, updates: int, skip: int, precision: str) -> tuple[float, nn.Module]:
    """Seconds of a step, and the student."""
    student, teacher = case.models()
    clock = Clock(device, skip, updates)
    with tempfile.TemporaryDirectory() as folder:
        fit = Fit("fit", case.objective(student, teacher), case.data, settings(case, device, updates, precision))
        fit.run(Path(folder), Context(Path(folder), "", seed=0, reporter=clock))
    return (clock.times[-1] - clock.times[0]) / max(1, updates - skip), student


def by_hand(case: Case, device: torch.device, updates: int, skip: int, precision: str) -> tuple[float, nn.Module]:
    """The same, as anyone would write it, on limbeck's batches."""
    student, teacher = (model.to(device) for model in case.models())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    student.train()
    teacher.eval()
    stream = Stream(case.data.train, case.batch_size, derive(0, "fit"), views=case.data.training_views)
    mixed = precision == "bf16-mixed"
    begin = 0.0
    for update in range(updates):
        batch = {key: value.to(device) for key, value in stream.batch(update).items()}
        with torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext():
            with torch.no_grad():
                teacher_logits = teacher(batch).logits
            loss = case.loss(student, teacher_logits, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if update + 1 == skip:
            wait(device)
            begin = time.perf_counter()
    wait(device)
    return (time.perf_counter() - begin) / max(1, updates - skip), student


def teacher_step(case: Case, device: torch.device, updates: int) -> float:
    """Seconds that the teacher alone takes for a batch."""
    _, teacher = case.models()
    teacher = teacher.to(device).eval()
    batch = Stream(case.data.train, case.batch_size, 0, views=case.data.training_views).batch(0)
    batch = {key: value.to(device) for key, value in batch.items()}
    for number in range(updates + 3):
        if number == 3:
            wait(device)
            begin = time.perf_counter()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            teacher(batch)
    wait(device)
    return (time.perf_counter() - begin) / updates


def assert_equal(case: Case, device: torch.device) -> None:
    """Both loops end with the same weights after three updates in full precision."""
    _, ours = limbeck_step(case, device, 3, 1, "32-true")
    _, theirs = by_hand(case, device, 3, 1, "32-true")
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        told = f"{case.name}: {name}: "
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-3, atol=1e-4, msg=lambda m, told=told: told + m)


def measure(case: Case, device: torch.device, rounds: int, updates: int) -> dict[str, object]:
    """The row of a case."""
    seconds: dict[str, list[float]] = {"limbeck": [], "by hand": []}
    sides = {"limbeck": limbeck_step, "by hand": by_hand}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(sides[name](case, device, updates, 10, "bf16-mixed")[0])
    ratio = quotient(seconds["limbeck"], seconds["by hand"])
    share = teacher_step(case, device, updates) / statistics.median(seconds["limbeck"])
    row = {
        "case": f"{case.name}, batch {case.batch_size}, bf16-mixed; the teacher alone is {share:.0%} of limbeck's step",
        "peer_name": "hand-written loop, no log, whole logits",
        "ours": seconds["limbeck"],
        "peer": seconds["by hand"],
        "unit": "seconds a step",
        "ratio": ratio,
        "teacher_share": share,
        "goal": "at most 1.01 of the time",
        "holds": ratio["median"] <= 1.01,
    }
    show(row, f" ({1e3 * statistics.median(seconds['limbeck']):.2f} ms a step)")
    return row


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(print("no accelerator here: nothing measured", flush=True))
    small = device.type == "cpu"
    rows = []
    for case in cases(small):
        assert_equal(case, device)
        rows.append(measure(case, device, arguments.rounds, 20 if small else 110))
    if not small:
        save("accelerator", rows, arguments.threads, torch.cuda.get_device_name(device))


if __name__ == "__main__":
    main()
