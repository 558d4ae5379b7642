"""Synthesise: the images of a data set are made chunk by chunk; a finished chunk is never made again."""

import contextlib
import csv
import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from limbeck.data.pixels import Lazy
from limbeck.data.random import derive
from limbeck.data.samples import Samples
from limbeck.data.synthetic import FORMAT_VERSION as DATA_VERSION
from limbeck.data.synthetic import INDEX, read_chunk, read_synthetic
from limbeck.errors import LimbeckError
from limbeck.stages.digest import module_hash
from limbeck.stages.evaluation import as_shipped
from limbeck.stages.files import write_atomically, write_json
from limbeck.stages.log import COLUMNS
from limbeck.stages.stage import Context, source_hash, versions, write_result

SPENT = "seconds.json"
Observe = Callable[[int, Mapping[str, Tensor]], None]


class Synthesiser(nn.Module):
    """Who makes the images of a data set.

    Attributes:
        classes: names of the classes.
        shape: channels, height and width of every image.
        chunks: the labels of each chunk, int64 [B]; their order is that of the data set.
        iterations: steps of one chunk.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    chunks: Sequence[Tensor]
    iterations: int

    def make(self, number: int, device: torch.device, observe: Observe) -> Tensor:
        """The images of chunk ``number``, float32 [B, C, H, W] in [0, 1].

        Draws come from torch's global generator, which is seeded by the run's seed and the chunk.

        Args:
            number: of the chunk.
            device: where to compute.
            observe: is told each step (from 0) and its terms of the loss, scalars.
        """
        raise NotImplementedError(f"{type(self).__name__} makes nothing")


class Synthesise:
    """Let ``synthesiser`` make a data set; the artefact are its samples, usable as the training samples of any fit.

    The folder holds ``chunk-NNNNN.safetensors`` (image float32, label) and ``data.json``; the data source
    ``synthetic`` opens it. A making that was killed goes on with the first chunk that is missing and ends with the same
    files, bit for bit.

    Args:
        name: the stage's folder.
        synthesiser: who makes the images.
        device: where; by default where the synthesiser is.
        log_every: steps between two rows of the log.

    Raises:
        LimbeckError: nothing is to be made.
    """

    def __init__(
        self,
        name: str,
        synthesiser: Synthesiser,
        *,
        device: torch.device | str | None = None,
        log_every: int = 50,
    ) -> None:
        if not len(synthesiser.chunks) or log_every < 1:
            raise LimbeckError(
                f"{name}: {len(synthesiser.chunks)} chunks of images, log_every {log_every}; both must be 1 or more"
            )
        self.name, self.synthesiser, self.device, self.log_every = name, synthesiser, device, log_every

    def identity(self, context: Context) -> Mapping[str, Any]:
        """What decides the images: who makes them, how, for which labels, from which seed."""
        labels = hashlib.sha256(torch.cat(list(self.synthesiser.chunks)).numpy().tobytes())
        return {
            "synthesiser": f"{type(self.synthesiser).__module__}.{type(self.synthesiser).__qualname__}",
            "source": source_hash(type(self.synthesiser)),
            "arguments": module_hash(self.synthesiser),
            "chunks": [len(chunk) for chunk in self.synthesiser.chunks],
            "labels": labels.hexdigest(),
            "shape": list(self.synthesiser.shape),
            "seed": derive(context.seed, self.name),
            "limbeck": versions()["limbeck"],
        }

    def run(self, folder: Path, context: Context) -> None:
        """Make the chunks that are not there; ``data.json`` and then ``result.json`` are written last."""
        maker, steps = self.synthesiser, self.synthesiser.iterations
        files = [f"chunk-{number:05d}.safetensors" for number in range(len(maker.chunks))]
        spent = _spent(folder / SPENT)
        begin = time.perf_counter()
        missing = [number for number, name in enumerate(files) if not (folder / name).is_file()]
        done = (len(files) - len(missing)) * steps
        with (
            context.reporter.stage(self.name, done, len(files) * steps),
            as_shipped(maker, self.device) as device,
            torch.enable_grad(),
        ):
            for number in missing:
                curve = _Curve(self.log_every, steps, done, context)
                torch.manual_seed(derive(context.seed, self.name, "chunk", number))
                images = maker.make(number, device, curve.observe)
                chunk = {"image": images.float().cpu().contiguous(), "label": maker.chunks[number], **curve.tensors()}
                content = safetensors.torch.save(chunk, {"terms": json.dumps(curve.names)})
                write_atomically(folder / files[number], functools.partial(Path.write_bytes, data=content))
                done += steps
                write_json(folder / SPENT, {"seconds": round(spent + time.perf_counter() - begin, 3)})
        self._write_log(folder, files)
        index = {"format_version": DATA_VERSION, "classes": list(maker.classes), "chunks": files}
        write_json(folder / INDEX, index)
        write_result(
            folder,
            context,
            self.name,
            metrics={"images": float(sum(len(chunk) for chunk in maker.chunks))},
            updates=len(files) * steps,
            samples_seen=steps * sum(len(chunk) for chunk in maker.chunks),
            seconds=spent + time.perf_counter() - begin,
        )

    def load(self, folder: Path) -> Samples:
        """The images and their labels."""
        return read_synthetic(folder)

    def describe(self) -> dict[str, Any]:
        """Sizes, and the time that some steps of the first chunk lead to expect."""
        maker = self.synthesiser
        clock = _Clock()
        with as_shipped(maker, self.device) as device, torch.enable_grad():
            torch.manual_seed(0)
            with contextlib.suppress(StopIteration):
                maker.make(0, device, clock.observe)
        images = sum(len(chunk) for chunk in maker.chunks)
        steps = maker.iterations * len(maker.chunks)
        return {"stage": self.name, "images": images, "iterations": maker.iterations, "seconds": steps * clock.step}

    def untrained(self) -> Samples:
        """Black images with the labels."""
        labels = torch.cat(list(self.synthesiser.chunks))
        shape = self.synthesiser.shape

        def black(row: int) -> Tensor:
            return torch.zeros(shape)

        return Samples(Lazy(black, len(labels), shape, str), labels, self.synthesiser.classes)

    def _write_log(self, folder: Path, files: list[str]) -> None:
        """``metrics.csv``: the terms of the loss, mean over the chunks, as read from them."""
        with safetensors.safe_open(folder / files[0], framework="pt") as first:
            names = json.loads(first.metadata()["terms"])
        if not names:
            return
        steps = read_chunk(folder / files[0], "steps").tolist()
        curves = torch.stack([read_chunk(folder / name, "curve") for name in files]).mean(0)

        def rows(part: Path) -> None:
            with part.open("w", newline="", encoding="utf-8") as handle:
                writer = csv.writer(handle)
                writer.writerow(COLUMNS)
                for step, values in zip(steps, curves.tolist(), strict=True):
                    columns = [("loss", sum(values)), *((f"loss/{n}", v) for n, v in zip(names, values, strict=True))]
                    writer.writerows((step, f"{0:.4f}", "train", name, repr(value)) for name, value in columns)

        write_atomically(folder / "metrics.csv", rows)


class _Curve:
    """Keeps the terms of every ``every``-th step of a chunk, and tells the reporter how far it is."""

    def __init__(self, every: int, steps: int, done: int, context: Context) -> None:
        self.every, self.total, self.done, self.reporter = every, steps, done, context.reporter
        self.names: list[str] = []
        self.steps: list[int] = []
        self.values: list[Tensor] = []

    def observe(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """See :meth:`Synthesiser.make`.

        Raises:
            LimbeckError: a term is NaN or infinite at a step that is kept.
        """
        if step % self.every == 0 or step == self.total - 1:
            self.names = list(terms)
            self.steps.append(step + 1)
            self.values.append(torch.stack([term.detach().float() for term in terms.values()]).cpu())
            broken = [name for name, value in zip(self.names, self.values[-1], strict=True) if not value.isfinite()]
            if broken:
                raise LimbeckError(
                    f"loss/{broken[0]} became NaN or infinite at step {step + 1}; finished chunks are kept. "
                    "Lower lr, or alpha where the statistics of a network are large"
                )
        loss = float(self.values[-1].sum()) if self.values else None
        self.reporter.advance(self.done + step + 1, loss)

    def tensors(self) -> dict[str, Tensor]:
        """What the chunk's file keeps of them."""
        if not self.values:
            return {}
        return {"steps": torch.tensor(self.steps), "curve": torch.stack(self.values)}


class _Clock:
    """Seconds a step over five steps after the first two; it then ends the making."""

    def __init__(self) -> None:
        self.times: list[float] = []

    @property
    def step(self) -> float:
        """Seconds; 0 where there were too few steps to tell."""
        return (self.times[-1] - self.times[1]) / (len(self.times) - 2) if len(self.times) > 2 else 0.0

    def observe(self, step: int, terms: Mapping[str, Tensor]) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) == 7:
            raise StopIteration


def _spent(path: Path) -> float:
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0
