"""Score: numbers of every sample, as a table on disk."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from limbeck.data.data import Records
from limbeck.data.fingerprint import samples_hash
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy
from limbeck.stages.digest import module_hash
from limbeck.stages.evaluation import as_shipped
from limbeck.stages.files import write_atomically
from limbeck.stages.processes import make_fabric
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, is_first_process, source_hash, versions, write_result

Table = dict[str, Tensor]
"""Column -> float32 [N, ...], in the order of the samples."""

TABLE = "table.safetensors"
"""The columns, and ``index`` int64 [N]: the samples' stable positions in their source."""


class Outputs(nn.Module):
    """What a classifier says of samples: ``probabilities`` [B, C] and ``features`` [B, D], the input of its head.

    Args:
        model: gives a :class:`~limbeck.models.classifier.ClassifierOutput` for a batch.
        columns: which of the two.
        temperature: T > 0 of the softmax of the logits.

    Raises:
        LimbeckError: a temperature that is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        columns: Sequence[Literal["probabilities", "features"]] = ("probabilities",),
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise LimbeckError(f"temperature is {temperature}; it must be above 0")
        self.model, self.columns, self.temperature = model, tuple(columns), temperature

    def forward(self, batch: Mapping[str, Tensor]) -> Table:
        """The columns of a batch.

        Raises:
            LimbeckError: features are wanted of a network in which no head was found.
        """
        output = self.model({"image": batch["image"]})
        if "features" in self.columns and output.features is None:
            raise LimbeckError(
                "the network has no head whose input could be its features; name it: Classifier(head=...)"
            )
        found = {
            "probabilities": (output.logits.float() / self.temperature).softmax(-1),
            "features": output.features,
        }
        return {name: found[name] for name in self.columns}


class GradientNorms(nn.Module):
    """``gradient`` [B]: the norm of the gradient of a sample's cross-entropy with respect to all weights.

    GraNd (arXiv 2107.07075, definition 2.1) before its mean over first weights.

    Args:
        model: a classifier, whose parts work sample by sample in eval mode.
        chunk: samples whose gradients are held at once.
    """

    def __init__(self, model: nn.Module, chunk: int = 32) -> None:
        super().__init__()
        self.model, self.chunk = model, chunk

    def forward(self, batch: Mapping[str, Tensor]) -> Table:
        """The column of a batch."""
        weights = {name: weight.detach() for name, weight in self.model.named_parameters()}

        def loss(weights: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            output = functional_call(self.model, dict(weights), ({"image": image[None]},))
            return cross_entropy(output.logits, label[None])

        every = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=self.chunk)
        gradients = every(weights, batch["image"], batch["label"])
        squares = torch.stack([g.float().flatten(1).square().sum(1) for g in gradients.values()])
        return {"gradient": squares.sum(0).sqrt()}


class Score:
    """Let ``scorer`` look at every sample once, without augmentation; the artefact is a :data:`Table`.

    Every ``every`` samples are written as they come: a scoring that was killed goes on there, and asks about no sample
    twice whose part is there. ``samples_seen`` of the result counts what was asked.

    Args:
        name: the stage's folder.
        scorer: batch -> columns, [B, ...] each; in eval mode.
        samples: what is scored.
        settings: of the fit that the table is for: it is made on its accelerator.
        batch_size: samples a forward pass.
        every: samples a part.

    Raises:
        LimbeckError: sizes below 1.
    """

    def __init__(
        self,
        name: str,
        scorer: nn.Module,
        samples: Records,
        settings: FitSettings,
        *,
        batch_size: int = 256,
        every: int = 4096,
    ) -> None:
        if batch_size < 1 or every < 1:
            raise LimbeckError(f"{name}: batch_size is {batch_size} and every {every}; both must be at least 1")
        self.name, self.scorer, self.samples, self.settings = name, scorer, samples, settings
        self.batch_size, self.every = batch_size, every

    def identity(self, context: Context) -> Mapping[str, Any]:
        """What decides the table: who scores, and what."""
        return {
            "scorer": f"{type(self.scorer).__module__}.{type(self.scorer).__qualname__}",
            "arguments": module_hash(self.scorer),
            "data": samples_hash(self.samples),
            "batches": [self.batch_size, self.every],
            "source": source_hash(type(self)),
            "limbeck": versions()["limbeck"],
        }

    def run(self, folder: Path, context: Context) -> None:
        """Score part after part; ``table.safetensors`` and then ``result.json`` are written last."""
        begin = time.perf_counter()
        if is_first_process():
            parts = torch.arange(len(self.samples)).split(self.every)
            files = [folder / f"part-{number:05d}.safetensors" for number in range(len(parts))]
            device = make_fabric(self.settings).device
            done = 0
            with context.reporter.stage(self.name, 0, len(self.samples)):
                for positions, file in zip(parts, files, strict=True):
                    if not file.is_file():
                        write(file, score(self.scorer, self.samples, positions, self.batch_size, device))
                    done += len(positions)
                    context.reporter.advance(done, None)
            found = [safetensors.torch.load_file(file) for file in files]
            table = {name: torch.cat([part[name] for part in found]) for name in found[0]}
            write(folder / TABLE, {**table, "index": self.samples.indices})
            write_result(
                folder,
                context,
                self.name,
                metrics={name: float(column.mean()) for name, column in table.items() if column.ndim == 1},
                updates=0,
                samples_seen=len(self.samples),
                seconds=time.perf_counter() - begin,
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()

    def load(self, folder: Path) -> Table:
        """The columns, float32 [N, ...]."""
        if is_first_process():
            for part in folder.glob("part-*.safetensors"):
                part.unlink()
        return read(folder / TABLE)

    def describe(self) -> dict[str, Any]:
        """Sizes, and the time that one batch leads to expect."""
        count = min(self.batch_size, len(self.samples))
        begin = time.perf_counter()
        score(self.scorer, self.samples, torch.arange(count), self.batch_size)
        seconds = (time.perf_counter() - begin) * len(self.samples) / count
        return {"stage": self.name, "samples": len(self.samples), "seconds": seconds}

    def untrained(self) -> Table:
        """The numbers of the first sample for every one: such as there can be."""
        first = score(self.scorer, self.samples, torch.zeros(1, dtype=torch.int64))
        return {name: column.expand(len(self.samples), *column.shape[1:]) for name, column in first.items()}


def score(
    scorer: nn.Module,
    samples: Records,
    positions: Tensor | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Table:
    """The columns of samples, on the CPU.

    Args:
        scorer: batch -> columns; in eval mode, without gradient, on ``device`` meanwhile.
        samples: what is scored, without augmentation.
        positions: which of them, int64 [M]; all where not given.
        batch_size: samples a forward pass.
        device: where to compute; by default where the scorer is.

    Raises:
        LimbeckError: a number that is not finite, with the first such sample's index.
    """
    positions = torch.arange(len(samples)) if positions is None else positions
    rows: list[Table] = []
    with as_shipped(scorer, device) as place:
        for some in positions.split(batch_size):
            batch = samples.fetch(some)
            columns = scorer({name: value.to(place) for name, value in batch.items()})
            rows.append({name: column.detach().float().cpu() for name, column in columns.items()})
            for name, column in rows[-1].items():
                broken = ~column.flatten(1).isfinite().all(1) if column.ndim > 1 else ~column.isfinite()
                if broken.any():
                    raise LimbeckError(
                        f"{name} of index {int(batch['index'][broken][0])} is not finite: broken weights, or diverged "
                        "training"
                    )
    return {name: torch.cat([part[name] for part in rows]) for name in rows[0]}


def write(path: Path, table: Mapping[str, Tensor]) -> None:
    """Store columns atomically."""
    content = safetensors.torch.save({name: column.contiguous() for name, column in table.items()})
    write_atomically(path, lambda part: part.write_bytes(content))


def read(path: Path) -> Table:
    """Stored columns without the indices."""
    return {name: column for name, column in safetensors.torch.load_file(path).items() if name != "index"}


def given_scores(path: Path, samples: Records) -> Tensor:
    """Scores that somebody else made, float32 [N] in the order of the samples.

    Args:
        path: a .npy file with one number for each index of the samples' source.
        samples: whose scores are taken.

    Raises:
        LimbeckError: no such file, or not one number for each index.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise LimbeckError(f"scores: {path} cannot be read as a .npy file ({error})") from None
    if not isinstance(found, np.ndarray) or found.shape != (samples.num_samples,) or found.dtype.kind not in "fiu":
        shape = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else "no array"
        raise LimbeckError(
            f"scores: {path} holds {shape}; expected one number for each of {samples.num_samples} indices"
        )
    return torch.from_numpy(found.astype(np.float32))[samples.indices]
