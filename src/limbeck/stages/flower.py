"""Clients on Flower's simulation engine: side by side in processes of their own, answers in the order of clients."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.data.clients import ClientData
from limbeck.errors import LimbeckError, require
from limbeck.models.model import Model
from limbeck.stages.aggregation import Update, Weights
from limbeck.stages.federate import Engine, Local, Work

_CONNECTING = 120.0
"""Seconds that Flower gets to bring its clients up."""


class _Flower:
    """An engine whose clients are nodes of a Flower federation.

    Args:
        grid: Flower's connection to the nodes.
        flower: the module ``flwr.app``.
        clients: how many there are.
    """

    def __init__(self, grid: Any, flower: Any, clients: int) -> None:
        self.grid, self.flower = grid, flower
        deadline = time.monotonic() + _CONNECTING
        while len(nodes := sorted(grid.get_node_ids())) < clients:
            if time.monotonic() > deadline:
                raise LimbeckError(f"only {len(nodes)} of {clients} clients of Flower's simulation came up")
            time.sleep(0.1)
        self.nodes = nodes

    def round(self, weights: Weights, clients: Sequence[int], number: int) -> list[Update | str]:
        """See :class:`limbeck.stages.federate.Engine`."""
        flower = self.flower
        messages = [
            flower.Message(
                content=flower.RecordDict(
                    {
                        "weights": flower.ArrayRecord(weights),
                        "work": flower.ConfigRecord({"client": client, "number": number}),
                    }
                ),
                message_type=flower.MessageType.TRAIN,
                dst_node_id=self.nodes[client],
            )
            for client in clients
        ]
        # Answers come in the order in which clients finish; averaging needs an order of its own.
        found: dict[int, Update | str] = {}
        for reply in self.grid.send_and_receive(messages):
            client = self.nodes.index(reply.metadata.src_node_id)
            found[client] = _update(reply)
        return [found.get(client, "no answer") for client in clients]


def simulate(work: Work, model: Model, data: ClientData, seed: int, server: Callable[[Engine], str]) -> str:
    """Run ``server`` with an engine whose clients are nodes of Flower's simulation.

    Args:
        work: what a client does.
        model: of the server's architecture.
        data: what the clients hold.
        seed: of the stage.
        server: goes through the rounds with the engine it is given; may return a word.

    Returns:
        What ``server`` returned.

    Raises:
        LimbeckError: Flower is not installed, its clients do not come up, or what ``server`` raised.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about the future
    flower = require("flwr.app", extra="federated")
    client_app = require("flwr.clientapp", extra="federated").ClientApp()
    server_app = require("flwr.serverapp", extra="federated").ServerApp()
    simulation = require("flwr.simulation", extra="federated")
    require("ray", extra="federated")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    local = Local(work, model, data, seed)
    threads = torch.get_num_threads()

    @client_app.train()
    def train(message: Any, context: Any) -> Any:
        torch.set_num_threads(threads)  # sums must not depend on how many cores a node sees
        asked = message.content["work"]
        weights = dict(message.content["weights"].to_torch_state_dict())
        answer = local.one(weights, int(asked["client"]), int(asked["number"]))
        if isinstance(answer, str):
            content = {"error": flower.ConfigRecord({"error": answer})}
        else:
            observed = {name: list(pair) for name, pair in answer.observed.items()}
            content = {
                "delta": flower.ArrayRecord(answer.delta),
                "weight": flower.MetricRecord({"weight": answer.weight}),
                "observed": flower.MetricRecord(observed),
            }
        return flower.Message(content=flower.RecordDict(content), reply_to=message)

    result: list[str] = []
    errors: list[BaseException] = []

    @server_app.main()
    def main(grid: Any, context: Any) -> None:
        try:
            result.append(server(_Flower(grid, flower, len(data.clients))))
        except BaseException as error:  # it would end in Flower's log
            errors.append(error)

    # A cluster of its own: Ray would else wait minutes for one that was running here once.
    cluster = {"address": os.environ.get("RAY_ADDRESS", "local"), "log_to_driver": False}
    simulation.run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=len(data.clients),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": cluster},
    )
    if errors:
        raise errors[0]
    if not result:
        raise LimbeckError("Flower's simulation ended before the rounds did; its own messages say why")
    return result[0]


def _update(reply: Any) -> Update | str:
    if reply.has_error():
        return f"Flower: {reply.error.reason or reply.error.code}"
    if "error" in reply.content:
        return str(reply.content["error"]["error"])
    delta: dict[str, Tensor] = dict(reply.content["delta"].to_torch_state_dict())
    observed = {name: (float(pair[0]), float(pair[1])) for name, pair in reply.content["observed"].items()}
    return Update(delta, float(reply.content["weight"]["weight"]), observed)
