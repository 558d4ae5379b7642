"""Federate: rounds of work at clients and of averaging at a server give a model; only the model travels.

Which clients take part in a round, and what is random about their work, are functions of the seed, the round and
the client: a run that was killed in the middle ends with the same weights as one that was not.
"""

import copy
import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch

from limbeck.data.clients import ClientData
from limbeck.data.fingerprint import fingerprint
from limbeck.data.random import derive, permutation
from limbeck.errors import LimbeckError
from limbeck.models.folder import load_weights, save
from limbeck.models.model import Model
from limbeck.stages.aggregation import Update, Weights, average, means, pooled
from limbeck.stages.digest import module_hash, plain_arguments
from limbeck.stages.evaluation import evaluation, predict_logits
from limbeck.stages.files import saving, write_atomically, write_text
from limbeck.stages.interrupt import Interrupt
from limbeck.stages.log import Log
from limbeck.stages.processes import make_fabric
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Context, source_hash, versions, write_result

CHECKPOINT = "checkpoint.pt"


class Work(Protocol):
    """What a method does at a client."""

    def update(self, model: Model, data: ClientData, client: int, number: int, seed: int) -> Update:
        """Train on what one client holds.

        Args:
            model: the server's model, a copy to change at will.
            data: ``data.clients[client]`` is what this client holds; nothing else may be trained on.
            client: its number.
            number: the round, from 0.
            seed: of the stage.
        """


class Engine(Protocol):
    """Where clients work."""

    def round(self, weights: Weights, clients: Sequence[int], number: int) -> list[Update | str]:
        """The update of each client, in their order; of one that failed its error."""


@dataclass
class State:
    """What the server knows after a round."""

    round: int = 0
    rounds: dict[int, int] = field(default_factory=dict)  # client -> how often it took part
    failures: list[tuple[int, int, str]] = field(default_factory=list)  # round, client, error
    observed: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0


class Federate:
    """Average what clients learn; the artefact is the server's model.

    In each round ``clients_per_round`` clients are drawn uniformly, each works on a copy of the server's model, and
    the server adds the mean of their changes, weighted by the updates' weights, in the order of their numbers
    (arXiv 1602.05629, algorithm 1). A client that fails is left out of its round, and that is said.

    Args:
        name: the stage's folder.
        work: what a client does.
        model: the server's model.
        data: what the clients hold.
        rounds: number of rounds.
        clients_per_round: how many take part in each.
        engine: "local" works through the clients one by one in this process; "flower" hands them to Flower's
            simulation engine, which runs them side by side. Both give the same weights.
        evaluations: how often the validation data are measured, evenly spread, the end included.

    Raises:
        LimbeckError: numbers that cannot be meant.
    """

    progress: ClassVar[tuple[str, str]] = ("nll", "lower")
    """The validation metric that improves from round to round, and its better direction."""

    def __init__(
        self,
        name: str,
        work: Work,
        model: Model,
        data: ClientData,
        *,
        rounds: int,
        clients_per_round: int,
        engine: Literal["local", "flower"] = "local",
        evaluations: int = 10,
    ) -> None:
        if rounds < 1:
            raise LimbeckError(f"rounds is {rounds}; it must be at least 1")
        if not 1 <= clients_per_round <= len(data.clients):
            raise LimbeckError(
                f"clients_per_round is {clients_per_round}; it must lie between 1 and the {len(data.clients)} clients"
            )
        self.name, self.work, self.model, self.data = name, work, model, data
        self.rounds, self.clients_per_round, self.engine = rounds, clients_per_round, engine
        self.evaluations = evaluations

    def identity(self, context: Context) -> Mapping[str, Any]:
        """What decides the weights: work, its source, first weights, data, rounds and seed."""
        return {
            "work": f"{type(self.work).__module__}.{type(self.work).__qualname__}",
            "arguments": plain_arguments(self.work),
            "source": source_hash(type(self.work)),
            "model": module_hash(self.model),
            "data": fingerprint(self.data),
            "rounds": [self.rounds, self.clients_per_round],
            "seed": derive(context.seed, self.name),
            "limbeck": versions()["limbeck"],
        }

    def load(self, folder: Path) -> Model:
        """The server's model after the last round."""
        load_weights(self.model, folder / "model")
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return self.model.eval()

    def untrained(self) -> Model:
        """The server's model as it is."""
        return self.model

    def describe(self) -> dict[str, Any]:
        """Sizes, and the time that one client's work leads to expect."""
        begin = time.perf_counter()
        Local(self.work, self.model, self.data, 0).round(_weights(self.model), [0], 0)
        return {
            "stage": self.name,
            "rounds": self.rounds,
            "clients": len(self.data.clients),
            "clients_per_round": self.clients_per_round,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "seconds": self.rounds * self.clients_per_round * (time.perf_counter() - begin),
        }

    def run(self, folder: Path, context: Context) -> None:
        """Go through the rounds; save the model, its predictions, ``clients.csv`` and ``result.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        seed = derive(context.seed, self.name)
        if self.engine == "local":
            stopped = self._rounds(Local(self.work, self.model, self.data, seed), folder, context, seed)
        else:
            from limbeck.stages.flower import simulate

            stopped = simulate(
                self.work, self.model, self.data, seed, lambda engine: self._rounds(engine, folder, context, seed)
            )
        if stopped:
            raise KeyboardInterrupt(stopped)

    def _rounds(self, engine: Engine, folder: Path, context: Context, seed: int) -> str:
        """The rounds that are left; returns where they were stopped, or nothing."""
        log = Log(folder, make_fabric(FitSettings(accelerator="cpu")), [])
        state = self._restore(folder, log)
        begin = time.perf_counter() - state.seconds
        evaluated = {round(self.rounds * (k + 1) / self.evaluations) for k in range(self.evaluations)}
        with context.reporter.stage(self.name, state.round, self.rounds), Interrupt() as interrupt:
            while state.round < self.rounds:
                self._round(engine, state, log, context, seed)
                if state.round in evaluated and len(self.data.validation):
                    values = evaluation(self.model.task).validate(self.model, self.data, torch.device("cpu"))
                    log.rows(state.round, float(state.round), "validation", values)
                state.seconds = time.perf_counter() - begin
                if state.round < self.rounds:
                    _save(folder / CHECKPOINT, {"weights": _weights(self.model), "state": vars(state)})
                    if interrupt.asked:
                        return f"{self.name} stopped after round {state.round} of {self.rounds}"
                context.reporter.advance(state.round, log.last)
            self._finish(folder, context, state)
            log.close()
        return f"{self.name} is finished" if interrupt.asked else ""

    def _restore(self, folder: Path, log: Log) -> State:
        if not (folder / CHECKPOINT).exists():
            log.rewind(0, {})
            return State()
        stored = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
        self.model.load_state_dict(stored["weights"])
        state = State(**stored["state"])
        log.rewind(state.round, {})
        return state

    def _round(self, engine: Engine, state: State, log: Log, context: Context, seed: int) -> None:
        order = permutation(derive(seed, "clients", state.round), len(self.data.clients))
        chosen = sorted(order[: self.clients_per_round].tolist())
        weights = _weights(self.model)
        updates: list[Update] = []
        for client, answer in zip(chosen, engine.round(weights, chosen, state.round), strict=True):
            state.rounds[client] = state.rounds.get(client, 0) + 1
            if isinstance(answer, Update):
                updates.append(answer)
                continue
            state.failures.append((state.round, client, answer))
            context.reporter.say(
                f"{self.name}: client {client} failed in round {state.round + 1} and is left out: {answer}"
            )
        if not updates:
            raise LimbeckError(
                f"{self.name}: every client of round {state.round + 1} failed, the last with: {state.failures[-1][2]}"
            )
        self.model.load_state_dict(average(weights, updates))
        seen = pooled([update.observed for update in updates])
        state.observed = pooled([state.observed, seen])
        state.round += 1
        total = sum(update.weight for update in updates)
        values = {"weight": total, "clients": float(len(updates))}
        log.rows(state.round, float(state.round), "train", values | means(seen))

    def _finish(self, folder: Path, context: Context, state: State) -> None:
        with saving(folder / "model"):
            save(self.model, folder / "model")
        metrics = evaluation(self.model.task).report(self.model, {}, self.data, folder, torch.device("cpu"))
        accuracies = [self._accuracy(number) for number in range(len(self.data.clients))]
        self._write_clients(folder, state, accuracies)
        known = [value for value in accuracies if value is not None]
        metrics |= means(state.observed) | {"failures": float(len(state.failures))}
        if known:
            metrics |= {"worst_client_accuracy": min(known)}
        if state.failures:
            context.reporter.say(
                f"{self.name}: {len(state.failures)} updates of clients failed, see {folder}/clients.csv"
            )
        write_result(
            folder,
            context,
            self.name,
            metrics=metrics,
            updates=state.round,
            samples_seen=int(sum(self._held(number) * count for number, count in state.rounds.items())),
            seconds=state.seconds,
        )

    def _held(self, number: int) -> int:
        return sum(len(part) for part in self.data.clients[number] if part is not None)

    def _accuracy(self, number: int) -> float | None:
        """Accuracy of the server's model on a client's unlabelled samples, where their truth is known."""
        samples = self.data.clients[number].unlabeled
        if samples is None or samples.hidden_labels is None:
            return None
        predictions = predict_logits(self.model, samples)
        return float((predictions.logits.argmax(-1) == samples.hidden_labels).float().mean())

    def _write_clients(self, folder: Path, state: State, accuracies: Sequence[float | None]) -> None:
        buffer = io.StringIO()
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow(["client", "labeled", "unlabeled", "rounds", "failures", "accuracy", "error", "classes"])
        for number, client in enumerate(self.data.clients):
            errors = [error for _, failed, error in state.failures if failed == number]
            table.writerow(
                [
                    number,
                    len(client.labeled),
                    0 if client.unlabeled is None else len(client.unlabeled),
                    state.rounds.get(number, 0),
                    len(errors),
                    "" if accuracies[number] is None else repr(accuracies[number]),
                    errors[-1] if errors else "",
                    json.dumps(torch.bincount(client.labeled.labels, minlength=len(self.data.classes)).tolist()),
                ]
            )
        write_text(folder / "clients.csv", buffer.getvalue())


class Local:
    """Clients work one after the other in this process.

    Args:
        work: what each does.
        model: of the server's architecture.
        data: what they hold.
        seed: of the stage.
    """

    def __init__(self, work: Work, model: Model, data: ClientData, seed: int) -> None:
        self.work, self.model, self.data, self.seed = work, model, data, seed

    def round(self, weights: Weights, clients: Sequence[int], number: int) -> list[Update | str]:
        """See :class:`Engine`."""
        return [self.one(weights, client, number) for client in clients]

    def one(self, weights: Weights, client: int, number: int) -> Update | str:
        """One client's update, or its error: whatever goes wrong at a client must not stop the others."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(weights)
        model.train()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(self.seed, "work", number, client))
            try:
                update = self.work.update(model, self.data, client, number, self.seed)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        broken = next((name for name, change in update.delta.items() if not bool(change.isfinite().all())), None)
        return update if broken is None else f"the change of {broken} is NaN or infinite"


def _weights(model: Model) -> Weights:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _save(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch.save into a file hides why the disk refused
    torch.save(state, buffer)
    write_atomically(path, lambda part: part.write_bytes(buffer.getbuffer()))
