"""Fit: an objective on data with an optimiser gives a model. The one training loop, on Lightning Fabric.

Nothing random is saved: which samples make batch ``b``, how each is augmented, and the draws inside an
update are functions of the seed and of positions, so a fit that was killed at any instant ends with the
same weights as one that was not.
"""

import copy
import dataclasses
import functools
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import Precision
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException

from limbeck.data.fingerprint import fingerprint
from limbeck.data.random import derive
from limbeck.data.samples import ImageData
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.metrics.classification import summary
from limbeck.models.classifier import Classifier
from limbeck.models.folder import load_weights, save
from limbeck.stages.checkpoint import Checkpoint
from limbeck.stages.engine import Engine
from limbeck.stages.evaluation import measure, predict_logits
from limbeck.stages.files import saving, write_atomically, write_json
from limbeck.stages.interrupt import Interrupt
from limbeck.stages.log import Log
from limbeck.stages.objective import Batch, Objective, Plan
from limbeck.stages.processes import keep_out_of_ddp, make_fabric
from limbeck.stages.settings import FitSettings
from limbeck.stages.sharded import is_sharded, on_first_process, to_shard
from limbeck.stages.stage import FORMAT_VERSION, Context, is_first_process, source_hash, versions

WITHOUT_EFFECT = ("workers", "log_every", "evaluations", "checkpoint_seconds", "loggers", "accelerator")
"""Settings that do not change the weights."""

CHECKPOINT = "checkpoint.pt"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Fit:
    """Optimise ``objective`` on ``data``; the artefact is the trained student.

    Args:
        name: the stage's folder.
        objective: student, teachers and losses; a new one for each fit, as training leaves its marks on it.
        data: training, validation and test samples.
        settings: how long, how fast, on what.
    """

    def __init__(self, name: str, objective: Objective, data: ImageData, settings: FitSettings) -> None:
        self.name = name
        self.objective = objective
        self.data = data
        self.settings = settings

    def identity(self, context: Context) -> Mapping[str, Any]:
        """What decides the weights: objective, its source and first weights, data, settings and seed."""
        settings = {key: value for key, value in self.settings.plain().items() if key not in WITHOUT_EFFECT}
        plain = (bool, int, float, str, tuple, list, type(None))
        arguments = {
            key: value
            for key, value in vars(self.objective).items()
            if not key.startswith("_") and key != "training" and isinstance(value, plain)
        }
        return {
            "objective": f"{type(self.objective).__module__}.{type(self.objective).__qualname__}",
            "arguments": arguments,
            "source": source_hash(type(self.objective)),
            "modules": hashlib.sha256(_ADDRESS.sub("", repr(self.objective)).encode()).hexdigest(),
            "weights": digest(self.objective),
            "data": fingerprint(self.data),
            "settings": settings,
            "seed": derive(context.seed, self.name),
            "limbeck": versions()["limbeck"],
        }

    def load(self, folder: Path) -> Classifier:
        """The student with the weights of the finished fit."""
        student = self.objective.student
        load_weights(student, folder / "model")
        if is_first_process():
            (folder / CHECKPOINT).unlink(missing_ok=True)
        student.zero_grad()
        return student.eval()

    def untrained(self) -> Classifier:
        """The student as it is."""
        return self.objective.student

    def describe(self) -> dict[str, Any]:
        """Sizes, and the time that a few updates on a copy lead to expect."""
        stream = _streams(self.objective, self.data, self.settings, 0)
        total = self.settings.total_updates(_samples(stream))
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

    def _set_up(self, fabric: Fabric, seed: int) -> tuple[Engine, dict[str, Stream], int]:
        settings, objective = self.settings, self.objective
        streams = _streams(objective, self.data, settings, seed)
        total = settings.total_updates(_samples(streams))
        objective.begin(
            Plan(
                num_samples=self.data.train.num_samples,
                num_classes=len(self.data.classes),
                updates=total,
                epochs=total * settings.batch_size / _samples(streams),
            )
        )
        objective.train()
        trained = to_shard(objective, settings, fabric) if is_sharded(fabric) else objective
        groups = {name: list(parameters) for name, parameters in trained.parameter_groups().items()}
        # On the CPU in full precision, where a step of a small network is otherwise half Python.
        fused = not is_sharded(fabric) and fabric.device.type == "cpu" and type(fabric.strategy.precision) is Precision
        optimizers = {name: settings.make_optimizer(group, fused=fused) for name, group in groups.items()}
        keep_out_of_ddp(trained)
        module, *wrapped = fabric.setup(trained, *optimizers.values())
        engine = Engine(
            fabric,
            module,
            dict(zip(optimizers, wrapped, strict=True)),
            accumulate=settings.accumulate,
            clip_grad_norm=settings.clip_grad_norm,
        )
        return engine, streams, total

    def _train(self, fabric: Fabric, folder: Path, context: Context) -> str:
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
        update, spent = checkpoint.restore()
        samples = _samples(streams)
        if update == 0:
            self._look_at_teachers(fabric, log, context)
        evaluations = {round(total * (k + 1) / settings.evaluations) for k in range(settings.evaluations)}
        begin = time.perf_counter() - spent
        saved = time.perf_counter()
        with context.reporter.stage(self.name, update, total), Interrupt() as interrupt:
            for batch in _batches(streams, update, total, fabric, settings.workers):
                factor = schedule(update, total)
                for name, optimizer in engine.optimizers.items():
                    for group, rate in zip(optimizer.param_groups, rates[name], strict=True):
                        group["lr"] = rate * factor
                _seed_update(seed, update, fabric)
                engine.update(batch)
                update += 1
                log.add(update, engine.values)
                context.reporter.advance(update, log.last)
                epoch = update * settings.batch_size / samples
                if update % settings.log_every == 0 or update == total:
                    rate = next(iter(rates.values()))[0] * factor
                    log.flush(update, epoch, {"lr": rate})
                if update in evaluations and len(self.data.validation):
                    checkpoint.check(update)
                    checkpoint.gather()
                    log.rows(update, epoch, "validation", self._validation(objective.student, fabric))
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
            if fabric.global_rank == 0:
                self._finish(folder, context, update, time.perf_counter() - begin, fabric.device)
                log.close()
            fabric.barrier()
        return f"{self.name} is finished" if interrupt.asked else ""

    def _look_at_teachers(self, fabric: Fabric, log: Log, context: Context) -> None:
        """The teacher's own accuracy before training: a broken teacher shows at minute zero."""
        for name, teacher in self.objective.teachers().items():
            if not len(self.data.validation):
                continue
            values = self._validation(teacher, fabric)
            log.rows(0, 0.0, name, values)
            chance = 1 / len(self.data.classes)
            hint = ": NO BETTER THAN CHANCE, is it the right teacher?" if values["accuracy"] <= 1.2 * chance else ""
            if fabric.global_rank == 0:
                context.reporter.say(f"{self.name}: {name} validation accuracy {values['accuracy']:.3f}{hint}")

    def _validation(self, model: nn.Module, fabric: Fabric) -> dict[str, float]:
        def values() -> dict[str, float]:
            predictions = predict_logits(model, self.data.validation, device=fabric.device)
            return summary(predictions.logits, predictions.labels)

        return on_first_process(fabric, values) if is_sharded(fabric) else values()

    def _finish(self, folder: Path, context: Context, updates: int, seconds: float, device: torch.device) -> None:
        with saving(folder / "model"):
            save(self.objective.student, folder / "model")
        metrics, predictions = measure(self.objective.student, self.data, device=device)
        tensors = {"logits": predictions.logits, "label": predictions.labels, "index": predictions.indices}
        for name, teacher in self.objective.teachers().items():
            of_teacher, predictions = measure(teacher, self.data, device=device)
            tensors[f"{name}_logits"] = predictions.logits
            metrics |= {f"{name}/{key}": value for key, value in of_teacher.items()}
        classes = {"classes": json.dumps(list(self.data.classes))}
        write_atomically(
            folder / "predictions.safetensors",
            # Not save_file, whose error on a full disk is no OSError.
            lambda part: part.write_bytes(
                safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}, classes)
            ),
        )
        write_json(
            folder / "result.json",
            {
                "format_version": FORMAT_VERSION,
                "method": context.method,
                "stage": self.name,
                "seed": context.seed,
                "metrics": metrics,
                "updates": updates,
                "samples_seen": updates * self.settings.batch_size,
                "seconds": round(seconds, 3),
                "versions": versions(),
            },
        )


def _streams(objective: Objective, data: ImageData, settings: FitSettings, seed: int) -> dict[str, Stream]:
    streams = objective.streams(data, settings.batch_size, seed)
    return {"": streams} if isinstance(streams, Stream) else dict(streams)


def _samples(streams: Mapping[str, Stream]) -> int:
    return max(len(stream.samples) for stream in streams.values())


def _batches(streams: Mapping[str, Stream], start: int, stop: int, fabric: Fabric, workers: int) -> Iterator[Batch]:
    readers = {
        name: stream.batches(start, stop, rank=fabric.global_rank, world=fabric.world_size, workers=workers)
        for name, stream in streams.items()
    }
    move = fabric.device.type != "cpu"
    for parts in zip(*readers.values(), strict=True):
        batch = parts[0] if "" in readers else dict(zip(readers, parts, strict=True))
        yield fabric.to_device(batch) if move else batch


def _seed_update(seed: int, update: int, fabric: Fabric) -> None:
    """Draws inside an update (dropout, mixing) are a function of (seed, update, process)."""
    number = derive(seed, "update", update, fabric.global_rank)
    if fabric.device.type == "cpu":
        # torch.manual_seed would also queue a call, with a formatted stack, for every accelerator not yet in use.
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)


def digest(module: nn.Module) -> str:
    """SHA-256 of all weights and buffers of a module, frozen teachers included."""
    digest = hashlib.sha256()
    state: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
