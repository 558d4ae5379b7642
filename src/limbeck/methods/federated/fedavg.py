"""Federated averaging."""

from dataclasses import dataclass
from typing import Literal

from limbeck.data.clients import ClientData
from limbeck.data.random import derive
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy
from limbeck.models.classifier import Classifier
from limbeck.models.model import Model
from limbeck.stages.aggregation import Update, difference
from limbeck.stages.federate import Federate
from limbeck.stages.local_steps import local_steps
from limbeck.stages.stage import Program


@dataclass(frozen=True)
class LabeledWork:
    """Steps of SGD on the cross-entropy of a client's labelled samples.

    Attributes:
        tau: number of steps.
        eta: learning rate.
        batch_size: samples a step.
        momentum: of SGD.

    Raises:
        LimbeckError: a number that cannot be meant.
    """

    tau: int
    eta: float
    batch_size: int
    momentum: float

    def __post_init__(self) -> None:
        if self.tau < 0 or self.batch_size < 1 or not self.eta >= 0 or not 0 <= self.momentum < 1:
            raise LimbeckError(
                f"tau {self.tau} and eta {self.eta} must be at least 0, batch_size {self.batch_size} at least 1, and "
                f"momentum {self.momentum} in [0, 1)"
            )

    def update(self, model: Model, data: ClientData, client: int, number: int, seed: int) -> Update:
        """The change that the labels make; it counts by the samples that were used."""
        start = {name: value.clone() for name, value in model.state_dict().items()}
        stream = Stream(
            data.clients[client].labeled,
            self.batch_size,
            derive(seed, "labeled", client),
            views=data.training_views,
            flip=data.flip,
        )
        local_steps(
            model,
            stream,
            self.tau,
            lambda batch: cross_entropy(model(batch).logits, batch["label"]),
            number=number,
            lr=self.eta,
            momentum=self.momentum,
        )
        return Update(difference(model, start), float(self.tau * self.batch_size))


class FedAvg:
    """Clients train on their labels, the server averages what they learnt; only the model travels.

    Source: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", arXiv 1602.05629 (2017), algorithm 1:

        w <- w + sum_k (n_k / n) (w_k - w),    w_k = w after local steps of SGD on client k.

    The local work is a number of steps, not of epochs, so that clients of different sizes cost the same and FedLabel
    (arXiv 2307.08809, equation 2) is compared at equal steps; n_k is then the number of samples used in the round.
    Unlabelled samples are not looked at.

    Args:
        student: the model that travels.
        data: what the clients hold.
        rounds: rounds of communication (a choice; the paper runs until a target accuracy).
        clients_per_round: clients drawn for each round.
        tau: local steps on labelled samples.
        eta: local learning rate.
        batch_size: samples a local step.
        momentum: of the local SGD.
        engine: flower (Flower's simulation, clients side by side) or local (one after the other).
        evaluations: how often the validation data are measured.
    """

    def __init__(
        self,
        student: Classifier,
        data: ClientData,
        rounds: int = 100,
        clients_per_round: int = 10,
        tau: int = 20,
        eta: float = 0.05,
        batch_size: int = 20,
        momentum: float = 0.0,
        engine: Literal["flower", "local"] = "flower",
        evaluations: int = 10,
    ) -> None:
        self.federation = Federate(
            "federate",
            LabeledWork(tau, eta, batch_size, momentum),
            student,
            data,
            rounds=rounds,
            clients_per_round=clients_per_round,
            engine=engine,
            evaluations=evaluations,
        )

    def program(self) -> Program:
        """One federation."""
        return (yield self.federation)
