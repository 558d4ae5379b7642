"""Label: a teacher's logits for the views that a later fit will see, on disk."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.data.random import derive
from limbeck.data.samples import Samples
from limbeck.data.store import SCHEMA, LabelStore, Mix, Rows, Schema, samples_hash
from limbeck.data.stored_views import StoredViews, mix
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.mix_rows import Draw, draw_cutmix, draw_mixup
from limbeck.stages.digest import module_hash
from limbeck.stages.evaluation import as_shipped
from limbeck.stages.files import write_json
from limbeck.stages.stage import Context, source_hash, versions, write_result

PROGRESS = "progress.json"


class Label:
    """Run ``teacher`` once over the batches of a training; the artefact are the samples with their stored views.

    Every batch is one of the stream that a fit on the artefact reads, mixed first where ``mix`` says so: labels are
    those of the mixed images. Progress is kept after every ``every`` batches; labelling that was killed goes on there
    and ends with the same bytes.

    Args:
        name: the stage's folder.
        teacher: gives logits [B, C] for a batch, in the order of the samples' classes.
        samples: what is labelled.
        view: the augmentation, a name of :mod:`limbeck.data.views`.
        flip: whether views may mirror.
        batches: how many batches are labelled: the updates of the fit.
        batch_size: samples a batch.
        mixing: mixup or cutmix of each batch with one permutation, share and box, or none.
        alpha: of the Beta distribution that the share of an image is drawn from.
        storage: precision of the stored logits.
        every: batches between two saves.
        device: where the teacher runs; by default where it is.

    Raises:
        LimbeckError: numbers or a view that cannot be.
    """

    def __init__(
        self,
        name: str,
        teacher: nn.Module,
        samples: Samples,
        *,
        view: str,
        flip: bool,
        batches: int,
        batch_size: int,
        mixing: Mix = "none",
        alpha: float = 1.0,
        storage: Literal["float16", "float32"] = "float16",
        every: int = 200,
        device: torch.device | str | None = None,
    ) -> None:
        if batches < 1 or every < 1:
            raise LimbeckError(f"{name}: batches is {batches} and every {every}; both must be at least 1")
        if mixing != "none" and not alpha > 0:
            raise LimbeckError(f"{name}: alpha of {mixing} is {alpha}; it must be above 0")
        samples.check_view(view)
        self.name, self.teacher, self.samples = name, teacher, samples
        self.view, self.flip, self.batches, self.batch_size = view, flip, batches, batch_size
        self.mixing, self.alpha, self.storage, self.every, self.device = mixing, alpha, storage, every, device

    def identity(self, context: Context) -> Mapping[str, Any]:
        """What decides the labels: teacher, samples, view, mixing and seed."""
        schema = self._schema(derive(context.seed, self.name))
        return {
            "schema": json.loads(json.dumps(schema.__dict__)),
            "batches": self.batches,
            "alpha": self.alpha,
            "source": source_hash(type(self)),
            "limbeck": versions()["limbeck"],
        }

    def run(self, folder: Path, context: Context) -> None:
        """Label batch after batch; ``schema.json`` and then ``result.json`` are written last."""
        begin = time.perf_counter()
        schema = self._schema(derive(context.seed, self.name))
        stream = Stream(
            self.samples, self.batch_size, schema.seed, views={"image": self.view}, name=schema.stream, flip=self.flip
        )
        done, spent = _progress(folder / PROGRESS)
        store = LabelStore.create(folder / "labels", schema, resume=done > 0)
        position = torch.full((self.samples.num_samples,), -1)
        position[self.samples.indices] = torch.arange(len(self.samples))
        with (
            context.reporter.stage(self.name, done, self.batches),
            as_shipped(self.teacher, self.device) as device,
        ):
            for number in range(done, self.batches):
                batch = stream.batch(number)
                rows = batch["epoch"] * len(self.samples) + position[batch["index"]]
                store.write(rows, self._label(batch["image"], rows, schema.seed, number, device))
                done = number + 1
                context.reporter.advance(done, None)
                if done % self.every == 0 or done == self.batches:
                    store.flush()
                    write_json(
                        folder / PROGRESS, {"batches": done, "seconds": spent + round(time.perf_counter() - begin, 3)}
                    )
        write_json(folder / "labels" / SCHEMA, store.description())
        write_result(
            folder,
            context,
            self.name,
            metrics={"agreement": self._agreement(store)},
            updates=0,
            samples_seen=self.batches * self.batch_size,
            seconds=spent + time.perf_counter() - begin,
        )

    def load(self, folder: Path) -> StoredViews:
        """The samples as they were labelled, labels memory-mapped."""
        return StoredViews(self.samples, LabelStore.open(folder / "labels"))

    def describe(self) -> dict[str, Any]:
        """Sizes, and the time that two batches lead to expect."""
        stream = Stream(self.samples, self.batch_size, 0, views={"image": self.view}, flip=self.flip)
        with as_shipped(self.teacher, self.device) as device:
            begin = time.perf_counter()
            for number in range(2):
                batch = stream.batch(number)
                self._label(batch["image"], torch.arange(self.batch_size), 0, number, device)
            seconds = (time.perf_counter() - begin) / 2
        schema = self._schema(0)
        size = schema.rows * (len(schema.classes) * (2 if self.storage == "float16" else 4) + 20)
        return {"stage": self.name, "batches": self.batches, "bytes": size, "seconds": self.batches * seconds}

    def untrained(self) -> StoredViews:
        """The samples with labels that say nothing."""
        return StoredViews(self.samples, LabelStore.blank(self._schema(0)))

    def _schema(self, seed: int) -> Schema:
        return Schema(
            classes=self.samples.classes,
            samples=len(self.samples),
            epochs=-(-self.batches * self.batch_size // len(self.samples)),
            view=self.view,
            flip=self.flip,
            seed=seed,
            stream="labels",
            batch_size=self.batch_size,
            mix=self.mixing,
            storage=self.storage,
            teacher=module_hash(self.teacher),
            data=samples_hash(self.samples),
        )

    def _label(self, images: Tensor, rows: Tensor, seed: int, number: int, device: torch.device) -> Rows:
        count = len(images)
        draw = self._draw(count, (images.shape[2], images.shape[3]), derive(seed, "mix", number))
        labels = Rows(
            logits=torch.empty(0),
            partner=rows[draw.partner],
            share=torch.full((count,), draw.share),
            box=torch.tensor([draw.box] * count),
        )
        mixed = mix(self.mixing, images, images[draw.partner], labels)
        return labels._replace(logits=self.teacher({"image": mixed.to(device)}).logits)

    def _draw(self, count: int, size: tuple[int, int], seed: int) -> Draw:
        generator = torch.Generator().manual_seed(seed)
        if self.mixing == "mixup":
            return draw_mixup(count, self.alpha, generator)
        if self.mixing == "cutmix":
            return draw_cutmix(count, size, self.alpha, generator)
        return Draw(torch.arange(count), 1.0)

    def _agreement(self, store: LabelStore) -> float:
        """How often the teacher's first choice is the label of the sample that has the larger share."""
        hits = count = 0
        for rows in torch.arange(store.schema.rows).split(65_536):
            labels = store.read(rows)
            known = labels.partner >= 0
            main = torch.where(labels.share >= 0.5, rows, labels.partner)[known] % len(self.samples)
            hits += int((labels.logits[known].argmax(1) == self.samples.labels[main]).sum())
            count += int(known.sum())
        return hits / count


def _progress(path: Path) -> tuple[int, float]:
    """Batches done and seconds spent; nothing where labelling has not begun."""
    if not path.is_file():
        return 0, 0.0
    found = json.loads(path.read_text(encoding="utf-8"))
    return int(found["batches"]), float(found["seconds"])
