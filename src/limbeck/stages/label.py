"""Label: a teacher's labels for the views that a later fit will see, on disk."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.codec import Columns, Kept, Storage
from limbeck.data.fingerprint import samples_hash
from limbeck.data.random import derive
from limbeck.data.samples import Samples
from limbeck.data.store import LabelStore, Mix, Rows, Schema
from limbeck.data.stored_views import StoredViews, mix
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.mix_rows import Draw, draw_cutmix, draw_mixup
from limbeck.stages.digest import module_hash
from limbeck.stages.evaluation import as_shipped
from limbeck.stages.stage import Context, source_hash, versions, write_result
from limbeck.stages.store_writer import StoreWriter

Labelled = tuple[int, Columns]
"""Number of a batch and its labels."""
Spread = Callable[[Callable[[range], Generator[Labelled]], range], Generator[Labelled]]
"""Has the batches that begin at some rows labelled by other processes, and yields them in order."""


class Label:
    """Run ``teacher`` once over the views that a training will see; the artefact is a store of its labels.

    Either over ``views`` views of every sample, or over the first ``batches`` batches of the stream that a fit on
    :class:`~limbeck.data.stored_views.StoredViews` reads, mixed first where ``mixing`` says so: labels are then those
    of the mixed images. Every ``every`` batches a file is written; labelling that was killed goes on after the last
    one and ends with the same bytes.

    Args:
        name: the stage's folder.
        teacher: gives logits [B, C] for a batch, in the order of the samples' classes.
        samples: what is labelled.
        view: the augmentation, a name of :mod:`limbeck.data.views`.
        flip: whether views may mirror.
        batch_size: samples a batch.
        views: of each sample; none where batches of a stream are labelled.
        batches: how many batches are labelled: the updates of the fit.
        mixing: mixup or cutmix of each batch with one permutation, share and box, or none.
        alpha: of the Beta distribution that the share of an image is drawn from.
        kept: all logits, the top_k probabilities, or the hard label.
        k: classes kept by top_k.
        storage: type of the stored numbers.
        every: batches between two files.
        seed: of the views; by default derived from the run's and the stage's name.
        device: where the teacher runs; by default where it is.
        spread: who labels the batches; by default this process.

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
        batch_size: int,
        views: int = 0,
        batches: int = 0,
        mixing: Mix = "none",
        alpha: float = 1.0,
        kept: Kept = "dense",
        k: int = 0,
        storage: Storage = "float16",
        every: int = 200,
        seed: int | None = None,
        device: torch.device | str | None = None,
        spread: Spread | None = None,
    ) -> None:
        if every < 1 or batch_size < 1:
            raise LimbeckError(f"{name}: every is {every} and batch_size {batch_size}; both must be at least 1")
        if (views < 1) == (batches < 1):
            raise LimbeckError(f"{name}: views is {views} and batches is {batches}; one of them must be at least 1")
        if mixing != "none" and views:
            raise LimbeckError(f"{name}: {mixing} mixes the batches of a stream; give batches in the place of views")
        if mixing != "none" and not alpha > 0:
            raise LimbeckError(f"{name}: alpha of {mixing} is {alpha}; it must be above 0")
        samples.check_view(view)
        self.name, self.teacher, self.samples = name, teacher, samples
        self.view, self.flip, self.views, self.batch_size = view, flip, views, batch_size
        self.planned = views * len(samples) if views else batches * batch_size
        self.batches = batches or -(-self.planned // batch_size)
        self.mixing, self.alpha, self.kept, self.k, self.storage = mixing, alpha, kept, k, storage
        self.every, self.seed, self.device, self.spread = every, seed, device, spread
        _ = self._schema(0, "").codec  # refuses what cannot be kept

    def identity(self, context: Context) -> Mapping[str, Any]:
        """What decides the labels: teacher, samples, view, mixing and seed."""
        return {
            "schema": asdict(self._schema(self._seed(context), module_hash(self.teacher))),
            "samples": samples_hash(self.samples),
            "batches": self.batches,
            "alpha": self.alpha,
            "source": source_hash(type(self)),
            "limbeck": versions()["limbeck"],
        }

    def run(self, folder: Path, context: Context) -> None:
        """Label batch after batch; ``result.json`` is written last."""
        schema = self._schema(self._seed(context), module_hash(self.teacher))
        writer = StoreWriter(folder, schema, self.samples, self.planned)
        begin = time.perf_counter() - writer.seconds
        done = -(-writer.done // self.batch_size)
        starts = range(writer.done, self.planned, self.batch_size)
        work = partial(self._labelled, schema)
        with (
            context.reporter.stage(self.name, done, self.batches),
            closing(self.spread(work, starts) if self.spread else work(starts)) as labelled,
        ):
            for number, columns in labelled:
                writer.add(columns)
                context.reporter.advance(number + 1, None)
                if (number + 1) % self.every == 0:
                    writer.flush(time.perf_counter() - begin)
            writer.flush(time.perf_counter() - begin)
        write_result(
            folder,
            context,
            self.name,
            metrics={"bytes_a_label": schema.row_bytes, **self._agreement(LabelStore.open(folder))},
            updates=0,
            samples_seen=self.planned,
            seconds=writer.seconds,
        )

    def load(self, folder: Path) -> StoredViews:
        """The samples as they were labelled, labels memory-mapped."""
        return StoredViews(self.samples, LabelStore.open(folder))

    def describe(self) -> dict[str, Any]:
        """Sizes, and the time that two batches lead to expect."""
        schema = self._schema(0, "")
        with as_shipped(self.teacher, self.device) as device:
            begin = time.perf_counter()
            for _, (number, rows, images) in zip(
                range(2), self._read(schema, range(0, self.planned, self.batch_size)), strict=False
            ):
                self._label(images, rows, 0, number, device)
            seconds = (time.perf_counter() - begin) / min(2, self.batches)
        size = self.planned * schema.row_bytes
        return {"stage": self.name, "batches": self.batches, "bytes": size, "seconds": self.batches * seconds}

    def untrained(self) -> StoredViews:
        """The samples with labels that say nothing."""
        return StoredViews(self.samples, LabelStore.blank(self._schema(0, ""), self.samples))

    def _seed(self, context: Context) -> int:
        return derive(context.seed, self.name) if self.seed is None else self.seed

    def _schema(self, seed: int, teacher: str) -> Schema:
        return Schema(
            classes=self.samples.classes,
            samples=len(self.samples),
            views=self.views or -(-self.planned // len(self.samples)),
            view=self.view,
            flip=self.flip,
            seed=seed,
            kept=self.kept,
            k=self.k,
            storage=self.storage,
            mix=self.mixing,
            ordered=self.views > 0,
            stream="" if self.views else "labels",
            batch_size=0 if self.views else self.batch_size,
            teacher=teacher,
        )

    def _labelled(self, schema: Schema, starts: range) -> Generator[Labelled]:
        """The batches that begin at ``starts``."""
        with as_shipped(self.teacher, self.device) as device:
            for number, rows, images in self._read(schema, starts):
                yield number, schema.encode(rows, self._label(images, rows, schema.seed, number, device))

    def _read(self, schema: Schema, starts: range) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Number, rows of the store and unmixed images of the batches that begin at ``starts``."""
        count = len(self.samples)
        if self.views:
            for start in starts:
                rows = torch.arange(start, min(start + self.batch_size, self.planned))
                batch = self.samples.fetch(rows % count)
                views = self.samples.augment(
                    batch, {"image": self.view}, seed=schema.seed, epochs=rows // count, flip=self.flip
                )
                yield start // self.batch_size, rows, views["image"]
            return
        place = torch.full((self.samples.num_samples,), -1)
        place[self.samples.indices] = torch.arange(count)
        stream = Stream(
            self.samples, self.batch_size, schema.seed, views={"image": self.view}, name=schema.stream, flip=self.flip
        )
        for number in (start // self.batch_size for start in starts):
            batch = stream.batch(number)
            yield number, batch["epoch"] * count + place[batch["index"]], batch["image"]

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

    def _agreement(self, store: LabelStore) -> dict[str, float]:
        """How often the teacher's first choice is the label of the sample of the larger share, where there is one."""
        hits = count = 0
        for part in torch.arange(store.schema.rows).split(65_536):
            rows = part[store.has(part)]
            labels = store.read(rows)
            main = torch.where(labels.share >= 0.5, rows, labels.partner) % len(self.samples)
            truth = self.samples.labels[main]
            hits += int((labels.logits.argmax(1) == truth).sum())
            count += int((truth >= 0).sum())
        return {"agreement": hits / count} if count else {}
