"""Fit: an objective on data with an optimiser gives a model. The one training loop, on Lightning Fabric.

Nothing random is saved: which samples make batch ``b``, how each is augmented, and the draws inside an
update are functions of the seed and of positions, so a fit that was killed at any instant ends with the
same weights as one that was not.
"""

import copy
import functools
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import FSDPStrategy
from torch import Tensor, nn

from limbeck.data.fingerprint import fingerprint
from limbeck.data.random import derive
from limbeck.data.samples import ImageData
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.metrics.classification import summary
from limbeck.models.classifier import Classifier
from limbeck.models.folder import load_weights, save
from limbeck.stages.engine import Engine
from limbeck.stages.evaluation import measure, predict_logits
from limbeck.stages.files import write_atomically, write_json
from limbeck.stages.interrupt import Interrupt
from limbeck.stages.log import Log
from limbeck.stages.objective import Batch, Objective, Plan
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import FORMAT_VERSION, Context, source_hash, versions

WITHOUT_EFFECT = ("workers", "log_every", "evaluations", "checkpoint_seconds", "loggers", "accelerator")
"""Settings that do not change the weights."""


class Fit:
    """Optimise ``objective`` on ``data``; the artefact is the trained student.

    Args:
        name: the stage's folder.
        objective: student, teachers and losses.
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
        settings = {key: value for key, value in asdict(self.settings).items() if key not in WITHOUT_EFFECT}
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
            "modules": hashlib.sha256(repr(self.objective).encode()).hexdigest(),
            "weights": digest(self.objective),
            "data": fingerprint(self.data),
            "settings": settings,
            "seed": derive(context.seed, self.name),
            "limbeck": versions()["limbeck"],
        }

    def load(self, folder: Path) -> Classifier:
        """The student with the weights of the finished fit."""
        load_weights(self.objective.student, folder / "model")
        return self.objective.student

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
        twin = copy.deepcopy(self)
        engine, streams, _ = twin._set_up(_fabric(twin.settings), seed=0)
        begin = 0.0
        for number, batch in enumerate(_batches(streams, 0, updates + 2, engine.fabric, 0)):
            if number == 2:
                begin = time.perf_counter()
            engine.update(batch)
        return (time.perf_counter() - begin) / updates

    def run(self, folder: Path, context: Context) -> None:
        """Train, measure, and save the model, its predictions and ``result.json`` in ``folder``."""
        fabric = _fabric(self.settings)
        fabric.launch(functools.partial(self._train, folder=folder, context=context))

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
        groups = {name: list(parameters) for name, parameters in objective.parameter_groups().items()}
        optimizers = {name: settings.make_optimizer(parameters) for name, parameters in groups.items()}
        _keep_out_of_ddp(objective)
        module, *wrapped = fabric.setup(objective, *optimizers.values())
        engine = Engine(
            fabric,
            module,
            dict(zip(optimizers, wrapped, strict=True)),
            accumulate=settings.accumulate,
            clip_grad_norm=settings.clip_grad_norm,
        )
        return engine, streams, total

    def _train(self, fabric: Fabric, folder: Path, context: Context) -> None:
        settings, objective = self.settings, self.objective
        folder.mkdir(parents=True, exist_ok=True)
        seed = derive(context.seed, self.name)
        sharded = isinstance(fabric.strategy, FSDPStrategy)
        student = copy.deepcopy(objective.student) if sharded else objective.student
        engine, streams, total = self._set_up(fabric, seed)
        schedule = settings.make_schedule()
        rates = {name: [g["lr"] for g in o.param_groups] for name, o in engine.optimizers.items()}
        log = Log(folder, settings.log_every, list(settings.loggers), write=fabric.global_rank == 0)
        checkpoint = _Checkpoint(folder / "checkpoint.pt", engine, log)
        update, spent = checkpoint.restore()
        samples = _samples(streams)
        if update == 0:
            self._look_at_teachers(fabric, log, context)
        evaluations = {round(total * (k + 1) / settings.evaluations) for k in range(settings.evaluations)}
        begin = time.perf_counter() - spent
        saved = time.perf_counter()
        context.reporter.start(self.name, update, total)
        with Interrupt() as interrupt:
            for batch in _batches(streams, update, total, fabric, settings.workers):
                factor = schedule(update, total)
                for name, optimizer in engine.optimizers.items():
                    for group, rate in zip(optimizer.param_groups, rates[name], strict=True):
                        group["lr"] = rate * factor
                _seed_update(seed, update, fabric)
                engine.update(batch)
                log.add(engine.values)
                update += 1
                context.reporter.advance(update, log.last)
                epoch = update * settings.batch_size / samples
                if update % settings.log_every == 0 or update == total:
                    rate = next(iter(rates.values()))[0] * factor
                    log.flush(update, epoch, {"lr": rate})
                if update in evaluations and len(self.data.validation):
                    log.rows(update, epoch, "validation", self._validation(objective.student, fabric))
                due = time.perf_counter() - saved > settings.checkpoint_seconds
                if update < total and checkpoint.agreed(due, interrupt.asked, update):
                    checkpoint.save(update, time.perf_counter() - begin)
                    saved = time.perf_counter()
                    if interrupt.asked:
                        log.close()
                        context.reporter.stop()
                        raise KeyboardInterrupt(f"{self.name} stopped after update {update} of {total}")
        context.reporter.stop()
        spent = time.perf_counter() - begin
        if sharded:
            state = fabric.strategy.get_module_state_dict(engine.module)
            student.load_state_dict({k[8:]: v for k, v in state.items() if k.startswith("student.")})
        if fabric.global_rank == 0:
            self._finish(folder, context, student, update, spent)
            log.close()
            checkpoint.path.unlink(missing_ok=True)
        fabric.barrier()

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
        predictions = predict_logits(model, self.data.validation, device=fabric.device)
        return summary(predictions.logits, predictions.labels)

    def _finish(self, folder: Path, context: Context, student: Classifier, updates: int, seconds: float) -> None:
        save(student, folder / "model")
        metrics, predictions = measure(student, self.data)
        tensors = {"logits": predictions.logits, "label": predictions.labels, "index": predictions.indices}
        for name, teacher in self.objective.teachers().items():
            of_teacher, predictions = measure(teacher, self.data)
            tensors[f"{name}_logits"] = predictions.logits
            metrics |= {f"{name}/{key}": value for key, value in of_teacher.items()}
        classes = {"classes": json.dumps(list(self.data.classes))}
        write_atomically(
            folder / "predictions.safetensors",
            lambda part: safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, part, classes),
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


class _Checkpoint:
    """The state of a fit between two updates, replaced atomically."""

    def __init__(self, path: Path, engine: Engine, log: Log) -> None:
        self.path = path
        self.engine = engine
        self.log = log

    def _state(self) -> dict[str, Any]:
        optimizers = {f"optimizer_{name}": value for name, value in self.engine.optimizers.items()}
        return {"objective": self.engine.module, **optimizers}

    def agreed(self, due: bool, asked: bool, update: int) -> bool:
        """Whether all processes save now: the first process's clock decides, any process may be interrupted."""
        fabric = self.engine.fabric
        if fabric.world_size == 1:
            return due or asked
        if update % 10:
            return False
        flag = torch.tensor([float(due and fabric.global_rank == 0) + float(asked)], device=fabric.device)
        torch.distributed.all_reduce(flag)
        return bool(flag.item() > 0)

    def save(self, update: int, seconds: float) -> None:
        """Save everything that belongs to the updates so far, unless it is broken.

        Raises:
            LimbeckError: a loss or a weight is NaN or infinite (the older checkpoint stays), or the disk is full.
        """
        self.log.check()
        for name, weight in self.engine.objective.named_parameters():
            if weight.requires_grad and not bool(weight.isfinite().all()):
                raise LimbeckError(
                    f"the weight {name} became NaN or infinite by update {update}; the last good state is kept. "
                    "Lower the learning rate or set fit.clip_grad_norm."
                )
        state = {**self._state(), "update": update, "seconds": seconds, "log": self.log.state()}
        fabric = self.engine.fabric
        if fabric.global_rank == 0:
            write_atomically(self.path, lambda part: fabric.save(part, state))
        else:
            fabric.save(self.path.with_name(self.path.name + ".part"), state)

    def restore(self) -> tuple[int, float]:
        """Go back to the last checkpoint: (updates done, seconds spent); (0, 0) where there is none."""
        if not self.path.exists():
            self.log.rewind(0, {}, 0)
            return 0, 0.0
        try:
            rest = self.engine.fabric.load(self.path, self._state(), strict=False, weights_only=True)
        except (RuntimeError, EOFError, KeyError) as error:
            raise LimbeckError(f"{self.path} cannot be read ({error}); delete it to start this stage again") from error
        self.log.rewind(rest["update"], rest["log"]["window"], rest["log"]["first"])
        return rest["update"], rest["seconds"]


def _fabric(settings: FitSettings) -> Fabric:
    return Fabric(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        precision=cast("Any", settings.precision),
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
    torch.manual_seed(derive(seed, "update", update, fabric.global_rank))


def _keep_out_of_ddp(objective: Objective) -> None:
    """Frozen teachers and per-sample memories are equal on all processes without being broadcast."""
    names = [
        f"{prefix}.{name}" if name else prefix
        for prefix, module in objective.named_modules()
        if getattr(module, "synchronised", True) is False
        for name in [n for n, _ in module.named_parameters()] + [n for n, _ in module.named_buffers()]
    ]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, names)


def digest(module: nn.Module) -> str:
    """SHA-256 of all weights and buffers of a module, frozen teachers included."""
    digest = hashlib.sha256()
    state: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
