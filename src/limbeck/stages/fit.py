"""Fit: an objective on data with an optimiser gives a model. The one training loop, on Lightning Fabric.

Nothing random is saved: which samples make batch ``b``, how each is augmented, and the draws inside an
update are functions of the seed and of positions, so a fit that was killed at any instant ends with the
same weights as one that was not.
"""

import copy
import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from limbeck.data.data import Data
from limbeck.data.fingerprint import fingerprint
from limbeck.data.random import derive
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.models.folder import load_weights, save
from limbeck.models.model import Model
from limbeck.stages.best import Best
from limbeck.stages.checkpoint import Checkpoint
from limbeck.stages.digest import digest, structure
from limbeck.stages.engine import Engine
from limbeck.stages.evaluation import evaluation
from limbeck.stages.files import saving
from limbeck.stages.interrupt import Interrupt
from limbeck.stages.log import Log
from limbeck.stages.objective import Batch, Objective, Plan
from limbeck.stages.processes import in_full_precision, is_sharded, keep_out_of_ddp, make_fabric, on_first_process
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, is_first_process, source_hash, versions, write_result

if TYPE_CHECKING:
    from lightning_fabric import Fabric

WITHOUT_EFFECT = ("workers", "log_every", "evaluations", "checkpoint_seconds", "loggers", "accelerator")
"""Settings that do not change the weights."""

CHECKPOINT = "checkpoint.pt"


class Fit:
    """Optimise ``objective`` on ``data``; the artefact is the trained student.

    Args:
        name: the stage's folder.
        objective: student, teachers and losses; a new one for each fit, as training leaves its marks on it.
        data: training, validation and test samples.
        settings: how long, how fast, on what.
    """

    def __init__(self, name: str, objective: Objective, data: Data, settings: FitSettings) -> None:
        self.name = name
        self.objective = objective
        self.data = data
        self.settings = settings

    def identity(self, context: Context) -> Mapping[str, Any]:
        """What decides the weights: objective, its source and first weights, data, settings and seed."""
        settings = deciding(self.settings.plain())
        return {
            "objective": f"{type(self.objective).__module__}.{type(self.objective).__qualname__}",
            "arguments": self.objective.given,
            "source": source_hash(type(self.objective)),
            "modules": structure(self.objective),
            "weights": digest(self.objective),
            "data": fingerprint(self.data),
            "settings": settings,
            "seed": derive(context.seed, self.name),
            "limbeck": versions()["limbeck"],
        }

    def load(self, folder: Path) -> Model:
        """The model that is kept, with the weights of the finished fit."""
        student = self.objective.trained()
        load_weights(student, folder / "model")
        if is_first_process():
            for name in (CHECKPOINT, Best.FILE):
                (folder / name).unlink(missing_ok=True)
        student.zero_grad()
        if not any(parameter.requires_grad for parameter in student.parameters()):
            student.requires_grad_(True)  # an average of weights: whoever receives it may train on
        return student.eval()

    def untrained(self) -> Model:
        """The model that is kept, as it is."""
        return self.objective.trained()

    def describe(self) -> dict[str, Any]:
        """Sizes, and the time that a few updates on a copy lead to expect."""
        stream = _streams(self.objective, self.data, self.settings, 0)
        total = self.settings.total_updates(*_epoch(stream))
        return {
            "stage": self.name,
            "updates": total,
            "batch_size": self.settings.batch_size,
            "training_samples": len(self.data.train),
            "parameters": sum(p.numel() for p in self.objective.parameters() if p.requires_grad),
            "seconds": total * self._seconds_per_update(),
        }

    def _seconds_per_update(self, updates: int = 5) -> float:
        # The objective only: the data may be large. One process, as nothing is launched.
        alone = dataclasses.replace(self.settings, devices=1, num_nodes=1, strategy="auto")
        twin = Fit(self.name, copy.deepcopy(self.objective), self.data, alone)
        engine, streams, _ = twin._set_up(make_fabric(alone), seed=0)
        begin = 0.0
        for number, batch in enumerate(_batches(streams, 0, updates + 2, engine.fabric, 0)):
            if number == 2:
                begin = time.perf_counter()
            engine.update(batch)
        return (time.perf_counter() - begin) / updates

    def run(self, folder: Path, context: Context) -> None:
        """Train, measure, and save the model, its predictions and ``result.json`` in ``folder``."""
        fabric = make_fabric(self.settings)
        try:
            stopped = fabric.launch(functools.partial(self._train, folder=folder, context=context))
        except ProcessRaisedException as error:
            # From a process of its own an error arrives as the text of its traceback.
            _, ours, message = str(error).rpartition(f"{LimbeckError.__module__}.{LimbeckError.__name__}: ")
            if not ours:
                raise
            raise LimbeckError(message.strip()) from None
        if stopped:
            raise KeyboardInterrupt(stopped)

    def _set_up(self, fabric: "Fabric", seed: int) -> tuple[Engine, dict[str, Stream], int]:
        settings, objective = self.settings, self.objective
        streams = _streams(objective, self.data, settings, seed)
        total = settings.total_updates(*_epoch(streams))
        samples, batch_size = _epoch(streams)
        objective.begin(
            Plan(
                num_samples=self.data.train.num_samples,
                num_classes=len(self.data.classes),
                updates=total,
                epochs=total * batch_size / samples,
                class_counts=self.data.class_counts,
            )
        )
        objective.train()
        trained = objective
        if is_sharded(fabric):
            from limbeck.stages.sharded import to_shard  # a second of imports

            trained = to_shard(objective, settings, fabric)
        groups = {name: list(parameters) for name, parameters in trained.parameter_groups().items()}
        # On the CPU in full precision, where a step of a small network is otherwise half Python.
        fused = not is_sharded(fabric) and fabric.device.type == "cpu" and in_full_precision(fabric)
        optimizers = {name: settings.make_optimizer(group, fused=fused) for name, group in groups.items()}
        keep_out_of_ddp(trained)
        module, *wrapped = fabric.setup(trained, *optimizers.values())
        engine = Engine(
            fabric,
            module,
            dict(zip(optimizers, wrapped, strict=True)),
            accumulate=settings.accumulate,
            clip_grad_norm=settings.clip_grad_norm,
            watch_every=max(1, settings.log_every // 10),
        )
        return engine, streams, total

    def _train(self, fabric: "Fabric", folder: Path, context: Context) -> str:
        """The work of one process; returns where it was stopped, or nothing."""
        settings, objective = self.settings, self.objective
        fabric.barrier()  # all are connected before one of them may refuse the work and leave
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() != fabric.world_size:
            raise LimbeckError(
                f"{self.name} asks for {fabric.world_size} processes, but an earlier stage of this command started "
                f"{torch.distributed.get_world_size()}: give every fit the same fit.devices, or use ddp_fork"
            )
        if settings.batch_size % (fabric.world_size * settings.accumulate):
            raise LimbeckError(
                f"fit.batch_size {settings.batch_size} cannot be divided among {fabric.world_size} processes with "
                f"fit.accumulate {settings.accumulate}; use a multiple of {fabric.world_size * settings.accumulate}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        seed = derive(context.seed, self.name)
        engine, streams, total = self._set_up(fabric, seed)
        schedule = settings.make_schedule()
        rates = {name: [g["lr"] for g in o.param_groups] for name, o in engine.optimizers.items()}
        log = Log(folder, fabric, list(settings.loggers))
        checkpoint = Checkpoint(folder / CHECKPOINT, engine, log, objective)
        best = Best(folder, objective, fabric) if settings.select == "best" else None
        update, spent = checkpoint.restore()
        engine.number = update
        samples, batch_size = _epoch(streams)
        if update == 0:
            self._look_at_teachers(fabric, log, context)
        evaluations = {round(total * (k + 1) / settings.evaluations) for k in range(settings.evaluations)}
        rank, device = fabric.global_rank, fabric.device
        begin = time.perf_counter() - spent
        saved = time.perf_counter()
        with context.reporter.stage(self.name, update, total), Interrupt() as interrupt:
            for batch in _batches(streams, update, total, fabric, settings.workers):
                factor = schedule(update, total)
                for name, optimizer in engine.optimizers.items():
                    for group, rate in zip(optimizer.param_groups, rates[name], strict=True):
                        group["lr"] = rate * factor
                seed_update(seed, update, rank, device)
                engine.update(batch)
                update += 1
                log.add(update, engine.values)
                context.reporter.advance(update, log.last)
                epoch = update * batch_size / samples
                if update % settings.log_every == 0 or update == total:
                    rate = next(iter(rates.values()))[0] * factor
                    log.flush(update, epoch, {"lr": rate})
                if update in evaluations and len(self.data.validation):
                    checkpoint.check(update)
                    checkpoint.gather()
                    values = self._validation(objective.trained(), fabric)
                    log.rows(update, epoch, "validation", values)
                    if best:
                        best.look(update, values)
                due = time.perf_counter() - saved > settings.checkpoint_seconds
                save, stop = checkpoint.agreed(due, interrupt.asked, update)
                if (save or stop) and update < total:
                    checkpoint.save(update, time.perf_counter() - begin)
                    saved = time.perf_counter()
                    if stop:
                        log.close()
                        return f"{self.name} stopped after update {update} of {total}"
            checkpoint.check(update)
            checkpoint.gather()
            if best:
                best.restore()
            if fabric.global_rank == 0:
                self._finish(folder, context, update, time.perf_counter() - begin, fabric.device)
                log.close()
            fabric.barrier()
        return f"{self.name} is finished" if interrupt.asked else ""

    def _look_at_teachers(self, fabric: "Fabric", log: Log, context: Context) -> None:
        """The teacher's own accuracy before training: a broken teacher shows at minute zero."""
        for name, teacher in self.objective.teachers().items():
            if not len(self.data.validation):
                continue
            values = self._validation(teacher, fabric)
            log.rows(0, 0.0, name, values)
            if not values or fabric.global_rank != 0:
                continue
            metric = "accuracy" if "accuracy" in values else next(iter(values))
            blind = metric == "accuracy" and values[metric] <= 1.2 / len(self.data.classes)
            hint = ": NO BETTER THAN CHANCE, is it the right teacher?" if blind else ""
            context.reporter.say(f"{self.name}: {name} validation {metric} {values[metric]:.3f}{hint}")

    def _validation(self, model: nn.Module, fabric: "Fabric") -> dict[str, float]:
        def values() -> dict[str, float]:
            return evaluation(self.objective.trained().task).validate(model, self.data, fabric.device)

        return on_first_process(fabric, values) if is_sharded(fabric) else values()

    def _finish(self, folder: Path, context: Context, updates: int, seconds: float, device: torch.device) -> None:
        model = self.objective.trained()
        streams = _streams(self.objective, self.data, self.settings, 0)
        samples_an_update = sum(stream.batch_size for stream in streams.values())
        with saving(folder / "model"):
            save(model, folder / "model")
        metrics = evaluation(model.task).report(model, self.objective.teachers(), self.data, folder, device)
        write_result(
            folder,
            context,
            self.name,
            metrics=metrics | self.objective.summary(),
            updates=updates,
            samples_seen=updates * samples_an_update,
            seconds=seconds,
        )


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The plain settings of a fit without those that do not change the weights."""
    chosen = {"evaluations"} if settings.get("select") == "best" else set()
    return {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT or key in chosen}


def _streams(objective: Objective, data: Data, settings: FitSettings, seed: int) -> dict[str, Stream]:
    streams = objective.streams(data, settings.batch_size, seed)
    return {"": streams} if isinstance(streams, Stream) else dict(streams)


def _epoch(streams: Mapping[str, Stream]) -> tuple[int, int]:
    """Samples and batch size of the stream that takes the most updates to be read once: that is an epoch."""
    longest = max(streams.values(), key=lambda stream: len(stream.samples) / stream.batch_size)
    return len(longest.samples), longest.batch_size


def _batches(streams: Mapping[str, Stream], start: int, stop: int, fabric: "Fabric", workers: int) -> Iterator[Batch]:
    readers = {
        name: stream.batches(start, stop, rank=fabric.global_rank, world=fabric.world_size, workers=workers)
        for name, stream in streams.items()
    }
    move = fabric.device.type != "cpu"
    for parts in zip(*readers.values(), strict=True):
        batch = parts[0] if "" in readers else dict(zip(readers, parts, strict=True))
        yield fabric.to_device(batch) if move else batch


def seed_update(seed: int, update: int, rank: int, device: torch.device) -> None:
    """Draws inside an update (dropout, mixing) are a function of (seed, update, process)."""
    number = derive(seed, "update", update, rank)
    if device.type == "cpu":
        # torch.manual_seed would also queue a call, with a formatted stack, for every accelerator not yet in use.
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)
