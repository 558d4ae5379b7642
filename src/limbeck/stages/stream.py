"""Adapt: a model meets a stream of test batches, answers each one and learns from it."""

import copy
import functools
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck.data.corrupted import CorruptedData, CorruptedStream
from limbeck.data.random import derive
from limbeck.errors import LimbeckError
from limbeck.metrics import cost
from limbeck.models.batch_norm import running_statistics_of
from limbeck.models.classifier import Classifier
from limbeck.models.folder import load_weights, save
from limbeck.stages.answers import STREAM, Answers, Pass, errors, gathered, read, write
from limbeck.stages.checkpoint import Checkpoint
from limbeck.stages.digest import module_hash
from limbeck.stages.engine import Engine
from limbeck.stages.files import saving
from limbeck.stages.fit import CHECKPOINT, Fit, seed_update
from limbeck.stages.interrupt import Interrupt
from limbeck.stages.log import Log
from limbeck.stages.objective import Batch, Objective, Plan
from limbeck.stages.processes import make_fabric
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, write_result

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Adapter(Objective):
    """An objective that answers every batch: ``terms`` keeps its prediction as ``logits [B, C]``.

    A batch is ``image`` and ``index``: no label, no domain. The answer is given while adapting, so it cannot depend
    on later batches. All modules are in eval mode. An adapter without trainable parameters has no terms and only
    answers.
    """

    student: Classifier
    answer: Tensor
    """The kept logits of the last update."""

    def step(self, batch: Batch, engine: Engine) -> None:
        """One update, or an answer where there is nothing to train."""
        if engine.optimizers:
            engine.minimise(batch)
            return
        with torch.no_grad():
            engine.call(batch)

    def finish(self, batch: Batch) -> None:
        """Keep the answer for the stage, then close the update."""
        self.answer = torch.cat(self.kept["logits"])
        super().finish(batch)


def online(batch_size: int, optimizer: str = "sgd", lr: float = 0.0, momentum: float = 0.0) -> FitSettings:
    """Settings of an adaptation: one step a batch at a constant rate, without weight decay.

    Args:
        batch_size: test images a batch.
        optimizer: "sgd" or "adam".
        lr: learning rate.
        momentum: of SGD, or the first beta of Adam.

    Raises:
        LimbeckError: the optimiser refuses its arguments.
    """
    momenta: dict[str, dict[str, Any]] = {"adam": {"betas": [momentum, 0.999]}, "sgd": {"momentum": momentum}}
    if optimizer not in momenta:
        raise LimbeckError(f"optimizer is {optimizer!r}; it must be adam or sgd")
    return FitSettings(
        batch_size=batch_size,
        optimizer={"name": optimizer, "lr": lr, "weight_decay": 0.0, **momenta[optimizer]},
        schedule={"name": "constant"},
    )


class Adapt:
    """Let ``objective`` answer the test stream of ``data``; the artefact is the model as it is at the end.

    Every batch is seen once and answered while adapting. The validation stream, where there is one, is answered
    first by an adapter of its own, so that settings can be chosen without the test stream (``validation/...``).

    The artefact has the weights after the stream and the running statistics of the source model, so that it is
    saved, loaded and used like any other; to go on as on the stream, let it use batch statistics again.

    Args:
        name: the stage's folder.
        objective: an adapter that has seen nothing yet; it is copied for each stream.
        source: the model before adaptation.
        data: the streams.
        settings: see :func:`online`.

    Raises:
        LimbeckError: the source model knows other classes than the data.
    """

    def __init__(
        self, name: str, objective: Adapter, source: Classifier, data: CorruptedData, settings: FitSettings
    ) -> None:
        if source.classes != data.classes:
            raise LimbeckError(
                f"the source model answers with the classes {list(source.classes)}, the stream has {list(data.classes)}"
            )
        self.name = name
        self.objective = objective
        self.source = source
        self.data = data
        self.settings = settings

    def identity(self, context: Context) -> Mapping[str, Any]:
        """What decides the answers: adapter, its source and first weights, the streams, settings and seed."""
        streams = hashlib.sha256()
        for stream in (self.data.validation_stream, self.data.stream):
            if stream is not None:
                stream.update_hash(streams)
        common = Fit(self.name, self.objective, self.data, self.settings).identity(context)
        return {**common, "model": module_hash(self.source), "streams": streams.hexdigest()}

    def load(self, folder: Path) -> Classifier:
        """The model after the stream."""
        model = self.untrained()
        load_weights(model, folder / "model")
        for path in (folder, folder / "validation"):
            (path / CHECKPOINT).unlink(missing_ok=True)
        return model

    def untrained(self) -> Classifier:
        """The source model with the weights that the adapter has now."""
        return running_statistics_of(self.source, self.objective.trained()).eval()

    def describe(self) -> dict[str, Any]:
        """Sizes, and the time that a few updates on a copy lead to expect."""
        streams = [s for s in (self.data.validation_stream, self.data.stream) if s is not None]
        engine = self._engine(make_fabric(self.settings), self.data.stream)
        updates, begin = min(4, len(self.data.stream)), time.perf_counter()
        for number in range(updates):
            engine.update(_unlabelled(self.data.stream.batch(number), engine.fabric))
        return {
            "stage": self.name,
            "updates": len(self.data.stream),
            "batch_size": self.settings.batch_size,
            "parameters": sum(p.numel() for p in self.objective.parameters() if p.requires_grad),
            "seconds": sum(map(len, streams)) * (time.perf_counter() - begin) / updates,
        }

    def run(self, folder: Path, context: Context) -> None:
        """Answer the streams and write the answers, the model and ``result.json``."""
        fabric = make_fabric(self.settings)
        stopped = fabric.launch(functools.partial(self._run, folder=folder, context=context))
        if stopped:
            raise KeyboardInterrupt(stopped)

    def _run(self, fabric: "Fabric", folder: Path, context: Context) -> str:
        metrics: dict[str, float] = {}
        finished: list[Pass] = []
        with Interrupt() as interrupt:
            for stream, where, prefix in (
                (self.data.validation_stream, folder / "validation", "validation/"),
                (self.data.stream, folder, ""),
            ):
                if stream is None:
                    continue
                found = self._pass(fabric, stream, where, context, interrupt)
                if isinstance(found, str):
                    return found
                finished.append(found)
                metrics |= {f"{prefix}{name}": value for name, value in errors(found, stream).items()}
        write_result(
            folder,
            context,
            self.name,
            metrics=metrics | {"parameters": float(cost.parameters(self.source))},
            updates=len(self.data.stream),
            samples_seen=len(finished[-1].label),
            seconds=finished[-1].seconds,
        )
        return ""

    def _engine(self, fabric: "Fabric", stream: CorruptedStream) -> Engine:
        objective = copy.deepcopy(self.objective)
        objective.begin(Plan(stream.samples.num_samples, len(self.data.classes), len(stream), stream.rounds))
        objective.eval()
        groups = {name: list(parameters) for name, parameters in objective.parameter_groups().items()}
        optimizers = {name: self.settings.make_optimizer(group) for name, group in groups.items() if group}
        wrapped = fabric.setup(objective, *optimizers.values())
        module, *steppers = wrapped if optimizers else (wrapped,)
        return Engine(fabric, module, dict(zip(optimizers, steppers, strict=True)))

    def _pass(
        self, fabric: "Fabric", stream: CorruptedStream, folder: Path, context: Context, interrupt: Interrupt
    ) -> Pass | str:
        """The answers to one stream; where it was stopped instead, the words for it."""
        if (folder / STREAM).exists():
            return read(folder / STREAM)
        folder.mkdir(parents=True, exist_ok=True)
        seed = derive(context.seed, self.name, "validation" if stream is self.data.validation_stream else "test")
        engine = self._engine(fabric, stream)
        adapter = engine.objective
        assert isinstance(adapter, Adapter)
        log = Log(folder, fabric, [])
        answers = Answers()
        checkpoint = _Checkpoint(folder / CHECKPOINT, engine, log, answers)
        update, spent = checkpoint.restore()
        engine.number = update
        begin = time.perf_counter() - spent
        saved = time.perf_counter()
        with context.reporter.stage(self.name, update, len(stream)):
            while update < len(stream):
                batch = stream.batch(update)
                seed_update(seed, update, fabric.global_rank, fabric.device)
                engine.update(_unlabelled(batch, fabric))
                answers.add(adapter.answer)
                wrong = (answers.last.argmax(-1) != batch["label"]).float().mean()
                update += 1
                log.add(update, {**engine.values, "error": wrong})
                if update % stream.parts == 0:  # a domain ends
                    checkpoint.check(update)
                    log.flush(update, update / len(stream) * stream.rounds, {})
                context.reporter.advance(update, log.last)
                due = time.perf_counter() - saved > self.settings.checkpoint_seconds
                if (due or interrupt.asked) and update < len(stream):
                    checkpoint.save(update, time.perf_counter() - begin)
                    saved = time.perf_counter()
                    if interrupt.asked:
                        return f"{self.name} stopped after batch {update} of {len(stream)}"
        found = gathered(stream, answers, adapter.trained(), time.perf_counter() - begin)
        if stream is self.data.stream:
            with saving(folder / "model"):
                save(running_statistics_of(self.source, adapter.trained()), folder / "model")
        write(folder / STREAM, found, self.data.classes, stream.order)
        return found


class _Checkpoint(Checkpoint):
    """A checkpoint that holds the answers too."""

    def __init__(self, path: Path, engine: Engine, log: Log, answers: Answers) -> None:
        super().__init__(path, engine, log, engine.objective)
        self.answers = answers

    def _stateful(self) -> dict[str, Any]:
        return {**super()._stateful(), "answers": self.answers}


def _unlabelled(batch: Batch, fabric: "Fabric") -> Batch:
    """What an adapter may see of a batch."""
    seen: Batch = fabric.to_device({name: value for name, value in batch.items() if name != "label"})
    return seen
