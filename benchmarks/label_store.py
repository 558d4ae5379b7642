"""Labels from the disk: the store against one file an image and against plain memory maps, and what reading costs.

Three layouts hold the same labels, the 5 most probable of 1,000 classes of 20 views of each image, and are asserted to
give the same probabilities. They are read in training order, batches of 32 random images with 4 random views each:
the store, NumPy memory maps of the same numbers, and FKD's layout (arXiv 2112.01528), a file an image with boxes,
flips and labels of all its views. Then, on ResNet-18 with 28x28 pixels and batches of 128: reading against a training
step, and distillation from the store against plain supervised training. Rounds are interleaved in one process.

    python benchmarks/label_store.py [--rounds 7] [--threads N] [--images 4000]
"""

import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common import alternate, noise, options, quotient, save, show
from limbeck.data.codec import Codec
from limbeck.data.samples import ImageData, Samples
from limbeck.data.store import LabelStore, Rows, Schema
from limbeck.methods.classification.kd import KD
from limbeck.methods.classification.supervised import Supervised
from limbeck.models import build
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context
from limbeck.stages.store_writer import StoreWriter
from limbeck.teachers.frozen import Frozen
from limbeck.teachers.stored import Stored

CLASSES, VIEWS, KEPT, IMAGES, CROPS = 1000, 20, 5, 32, 4


def schema(classes: int, samples: int, views: int, **changes: object) -> Schema:
    fixed = {"view": "none", "flip": False, "seed": 0, "kept": "dense", "k": 0, "storage": "float16", "mix": "none"}
    names = tuple(str(number) for number in range(classes))
    rest = {"ordered": True, "stream": "", "batch_size": 0, "teacher": ""}
    return Schema(classes=names, samples=samples, views=views, **{**fixed, **rest, **changes})


def write_store(folder: Path, made: Schema, samples: Samples, logits: Callable[[Tensor], Tensor]) -> LabelStore:
    writer = StoreWriter(folder, made, samples, made.rows)
    for rows in torch.arange(made.rows).split(8192):
        labels = Rows(logits(rows), rows, torch.ones(len(rows)), torch.zeros(len(rows), 4))
        writer.add(made.encode(rows, labels))
    writer.flush()
    return LabelStore.open(folder)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


class Layouts:
    """The same labels three times; each reader takes images [I] and views [I, M] and gives probabilities [I * M, C]."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.codec = Codec("top_k", CLASSES, "float16", KEPT)
        tiny = Samples(
            torch.zeros(count, 1, 1, 1), torch.zeros(count, dtype=torch.int64), [str(n) for n in range(CLASSES)]
        )

        def logits(rows: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(int(rows[0]))
            return 3 * torch.randn(len(rows), CLASSES, generator=generator)

        made = schema(CLASSES, count, VIEWS, kept="top_k", k=KEPT)
        self.stored = write_store(folder / "store", made, tiny, logits)
        columns = self.stored._take(np.arange(made.rows))
        (folder / "numpy").mkdir()
        for name, column in columns.items():
            np.save(folder / "numpy" / f"{name}.npy", column)
        self.maps = {name: np.load(folder / "numpy" / f"{name}.npy", mmap_mode="r") for name in columns}
        (folder / "files").mkdir()
        by_image = {name: column.reshape(VIEWS, count, KEPT).swapaxes(0, 1) for name, column in columns.items()}
        boxes, flips = torch.rand(VIEWS, 4), torch.zeros(VIEWS, dtype=torch.uint8)
        for image in range(count):
            labels = [
                torch.from_numpy(by_image[name][image].astype("float16")) for name in ("classes", "probabilities")
            ]
            torch.save((boxes, flips, torch.stack(labels, 1)), folder / "files" / f"{image}.pt")

    def store(self, images: Tensor, views: Tensor) -> Tensor:
        """The store."""
        rows = (views * self.count + images[:, None]).flatten()
        return self.stored.read(rows).logits.exp()

    def numpy(self, images: Tensor, views: Tensor) -> Tensor:
        """Plain memory maps."""
        rows = (views * self.count + images[:, None]).flatten().numpy()
        return self.codec.decode({name: column[rows] for name, column in self.maps.items()}).exp()

    def files(self, images: Tensor, views: Tensor) -> Tensor:
        """FKD's layout."""
        found = []
        for image, chosen in zip(images.tolist(), views, strict=True):
            _, _, labels = torch.load(self.folder / "files" / f"{image}.pt", weights_only=True)
            found.append(labels[chosen])
        both = torch.cat(found).float().numpy()
        return self.codec.decode({"classes": both[:, 0].astype(np.int64), "probabilities": both[:, 1]}).exp()


def read_layouts(folder: Path, count: int, rounds: int) -> list[dict[str, object]]:
    layouts = Layouts(folder, count)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(count, generator=generator).split(IMAGES)[: count // IMAGES]
    views = [torch.rand(IMAGES, VIEWS, generator=generator).argsort(1)[:, :CROPS] for _ in order]
    readers = {"store": layouts.store, "numpy": layouts.numpy, "files": layouts.files}
    first = [read(order[0], views[0]) for read in readers.values()]
    for other in first[1:]:
        torch.testing.assert_close(other, first[0])

    def everything(read: Callable[[Tensor, Tensor], Tensor]) -> None:
        for images, chosen in zip(order, views, strict=True):
            read(images, chosen)

    seconds = alternate({name: partial(everything, read) for name, read in readers.items()}, rounds)
    rows = len(order) * IMAGES * CROPS
    sizes = {name: size_of(folder / name) / (count * VIEWS) for name in readers}
    found = []
    for peer in ("numpy", "files"):
        ratio = quotient(seconds["store"], seconds[peer])
        what = "memory maps" if peer == "numpy" else "a file an image"
        found.append(
            {
                "case": f"reading, top 5 of 1,000 classes, against {what}",
                "peer_name": "plain NumPy memory maps" if peer == "numpy" else "FKD's layout, one file an image",
                "ours": [rows / value for value in seconds["store"]],
                "peer": [rows / value for value in seconds[peer]],
                "unit": "rows a second",
                "bytes_a_row": {"ours": sizes["store"], "peer": sizes[peer]},
                "ratio": ratio,
                "goal": "as fast as memory maps: at most 1.1 times the time"
                if peer == "numpy"
                else "less time, fewer bytes",
                "holds": ratio["median"] <= (1.1 if peer == "numpy" else 1.0) and sizes["store"] <= 1.2 * sizes[peer],
            }
        )
    return found


class Timed(Objective):
    """Notes when each update is done."""

    def after_update(self, batch: Batch) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


class TimedSupervised(Timed, Supervised):
    """Plain supervised training."""


class TimedKD(Timed, KD):
    """Distillation."""


def step_seconds(objective: Timed, data: ImageData, fit: FitSettings, skip: int = 3) -> float:
    objective.times = []
    with tempfile.TemporaryDirectory() as folder:
        Fit("fit", objective, data, fit).run(Path(folder), Context(Path(folder), "kd", seed=0))
    return (objective.times[-1] - objective.times[skip]) / (len(objective.times) - 1 - skip)


def train_from_store(folder: Path, rounds: int) -> list[dict[str, object]]:
    data = noise(28)
    torch.manual_seed(0)
    student: nn.Module = build("torchvision", data.task, model="resnet18")
    made = schema(10, len(data.train), 4)
    store = write_store(folder / "dense", made, data.train, lambda rows: torch.randn(len(rows), 10))
    teacher = Stored(store)
    replayed = teacher.replay(data)
    fit = FitSettings(updates=14, batch_size=128, evaluations=1)
    supervised, distilled, reading = [], [], []
    for number in range(rounds):
        arms = [
            (lambda: TimedSupervised(copy.deepcopy(student)), data, supervised),
            (lambda: TimedKD(copy.deepcopy(student), Frozen(teacher, classes=data.classes)), replayed, distilled),
        ]
        for make, its, seconds in arms[:: 1 if number % 2 == 0 else -1]:
            seconds.append(step_seconds(make(), its, fit))
        batches = torch.randint(len(data.train) * 4, (100, 128))
        begin = time.perf_counter()
        for rows in batches:
            store.read(rows)
        reading.append((time.perf_counter() - begin) / 100)
    share, ratio = quotient(reading, supervised), quotient(distilled, supervised)
    return [
        {
            "case": "reading 128 labels of 10 classes, against a training step of ResNet-18 at 28x28",
            "peer_name": "supervised training step",
            "ours": reading,
            "peer": supervised,
            "unit": "seconds a step",
            "ratio": share,
            "goal": "at most 0.05",
            "holds": share["median"] <= 0.05,
        },
        {
            "case": "kd from the store, against supervised training, ResNet-18 at 28x28, batch 128",
            "peer_name": "supervised training step",
            "ours": distilled,
            "peer": supervised,
            "unit": "seconds a step",
            "ratio": ratio,
            "goal": "at most 1.05",
            "holds": ratio["median"] <= 1.05,
        },
    ]


def main() -> None:
    parser = options(__doc__, rounds=7)
    parser.add_argument("--images", type=int, default=4000)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = read_layouts(Path(folder), arguments.images, arguments.rounds)
        rows += train_from_store(Path(folder), arguments.rounds)
    for row in rows:
        size = row.get("bytes_a_row")
        show(row, f", {size['ours']:.1f} against {size['peer']:.1f} bytes a row" if isinstance(size, dict) else "")
    save("label_store", rows, arguments.threads)


if __name__ == "__main__":
    main()
