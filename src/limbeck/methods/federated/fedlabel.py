"""Selective knowledge assimilation from the local and the global model."""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limbeck.data.clients import ClientData
from limbeck.data.data import Batch
from limbeck.data.random import derive
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.certainty import certainty, certainty_ratio, surer
from limbeck.losses.divergence import cross_entropy, forward_kl, reverse_kl
from limbeck.methods.federated.fedavg import LabeledWork
from limbeck.models.classifier import Classifier
from limbeck.models.model import Model
from limbeck.stages.aggregation import Update, difference
from limbeck.stages.federate import Federate
from limbeck.stages.local_steps import local_steps
from limbeck.stages.stage import Program

VIEW = "mild"
"""RandAugment of ten operations of magnitude 1 (section 5)."""


@dataclass(frozen=True)
class FedLabelWork:
    """What one client does in a round; the attributes are arguments of :class:`FedLabel`."""

    supervised: LabeledWork
    tau_unlabeled: int
    beta: float
    lambda_0: float
    confidence: str
    scores: str
    divergence: str
    teachers: str

    def update(self, model: Model, data: ClientData, client: int, number: int, seed: int) -> Update:
        """Both branches start from the server's model; their changes are added (equation 10)."""
        start = {name: value.clone() for name, value in model.state_dict().items()}
        received, local = copy.deepcopy(model).eval(), copy.deepcopy(model)
        labeled = self.supervised.update(local, data, client, number, seed)
        unlabeled = data.clients[client].unlabeled
        if unlabeled is None or not self.tau_unlabeled:
            return labeled
        local.eval()
        seen: dict[str, tuple[float, float]] = {}

        def loss(batch: Batch) -> Tensor:
            with torch.no_grad():
                of_local, of_received = local(batch).logits, received(batch).logits
            label, accepted, discarded, weight = self.select(of_local, of_received)
            _count(seen, batch, label, accepted, of_local, of_received)
            logits = model({"image": batch["augmented"]}).logits
            plain = model(batch).logits
            divergence = reverse_kl if self.divergence == "reverse_kl" else forward_kl
            hard = cross_entropy(logits, label, reduction="none")
            soft = divergence(plain, discarded, reduction="none")
            # Equation 8: discarded samples count as zeros.
            return (accepted * (hard + weight * soft)).mean()

        stream = Stream(
            unlabeled,
            self.supervised.batch_size,
            derive(seed, "unlabeled", client),
            views={"image": "none", "augmented": VIEW},
            flip=data.flip,
        )
        eta, momentum = self.supervised.eta, self.supervised.momentum
        local_steps(model, stream, self.tau_unlabeled, loss, number=number, lr=eta, momentum=momentum)
        change = {name: value + labeled.delta[name] for name, value in difference(model, start).items()}
        return Update(change, labeled.weight + seen["coverage"][0], seen)

    def select(self, local: Tensor, received: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Equations 3, 4 and 7: pseudo label, whether it is accepted, the discarded logits and their weight.

        Args:
            local: logits [B, C] of the client's own supervised model.
            received: logits [B, C] of the server's model.
        """
        scores = [x if self.scores == "logits" else x.softmax(-1) for x in (local, received)]
        sure_local, sure_received = (certainty(score, self.confidence) for score in scores)
        first = surer(sure_local, sure_received)
        if self.teachers != "both":
            first = torch.full_like(first, self.teachers == "local")
        chosen = torch.where(first[:, None], local, received)
        discarded = torch.where(first[:, None], received, local)
        probability, label = chosen.softmax(-1).max(-1)
        more, less = torch.where(first, sure_local, sure_received), torch.where(first, sure_received, sure_local)
        agreed = discarded.argmax(-1) == label
        weight = self.lambda_0 * certainty_ratio(less, more) * agreed
        if self.teachers != "both":
            weight = torch.zeros_like(weight)  # one teacher alone: there is nobody to discard
        return label, (probability > self.beta).to(chosen), discarded, weight


def _count(
    seen: dict[str, tuple[float, float]], batch: Batch, label: Tensor, accepted: Tensor, local: Tensor, received: Tensor
) -> None:
    """How many labels are accepted, and how often they and each teacher are right on those: for metrics only."""
    values = {"coverage": accepted}
    if "hidden_label" in batch:
        guesses = {"precision": label, "precision_local": local.argmax(-1), "precision_global": received.argmax(-1)}
        right = {name: (guess == batch["hidden_label"])[accepted.bool()] for name, guess in guesses.items()}
        values |= right
    for name, hits in values.items():
        total, count = seen.get(name, (0.0, 0.0))
        seen[name] = (total + float(hits.sum()), count + len(hits))


class FedLabel:
    """Clients with few labels believe, sample by sample, their own supervised model or the server's.

    Source: Cho, Joshi, Dimitriadis, "Local or Global: Selective Knowledge Assimilation for Federated Learning with
    Limited Labels", arXiv 2307.08809 (2023). In each round a client takes ``tau`` steps on its labels (equation 2,
    giving w_L), and from the received w ``tau_unlabeled`` steps on its unlabelled samples with the loss (equation 8)

        CE(s(w_U, psi(x)), y) + lambda(x) KL(s(w_U, x) || s-(x)) 1[argmax s-(x) = y],
        y = argmax s*(x) where max s*(x) > beta,    lambda(x) = lambda_0 h(s-(x)) / h(s*(x)),

    where s* is the surer and s- the other of s(w, x) and s(w_L, x), h is the variance of the class probabilities
    (equation 3), psi ten mild operations of RandAugment, and samples below beta count as zeros. The server adds the
    mean of Delta_L + Delta_U, weighted by the samples used (both equations 10).

    There is no released code. Settled here: h and beta look at probabilities, the KL has the argument order in which
    it is written, ties go to the local model. Choices, as the paper does not say: eta, tau, tau_unlabeled,
    batch_size, momentum, and beta and lambda_0 from the middle of its ablations.

    Args:
        student: the model that travels; without batch statistics, which clients of few classes spoil.
        data: what the clients hold.
        beta: smallest probability of a pseudo label.
        lambda_0: largest weight of the discarded model.
        confidence: h: variance, entropy (ln C less the entropy) or max.
        scores: what h looks at: probabilities or logits.
        divergence: reverse_kl is KL(student || discarded) as written, forward_kl the direction of distillation.
        teachers: both, or for ablations only the local or the global model.
        rounds: rounds of communication.
        clients_per_round: clients drawn for each round.
        tau: local steps on labelled samples.
        tau_unlabeled: local steps on unlabelled samples.
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
        beta: float = 0.4,
        lambda_0: float = 1.0,
        confidence: Literal["variance", "entropy", "max"] = "variance",
        scores: Literal["probabilities", "logits"] = "probabilities",
        divergence: Literal["reverse_kl", "forward_kl"] = "reverse_kl",
        teachers: Literal["both", "local", "global"] = "both",
        rounds: int = 100,
        clients_per_round: int = 10,
        tau: int = 20,
        tau_unlabeled: int = 20,
        eta: float = 0.05,
        batch_size: int = 20,
        momentum: float = 0.0,
        engine: Literal["flower", "local"] = "flower",
        evaluations: int = 10,
    ) -> None:
        if lambda_0 < 0 or tau_unlabeled < 0:
            raise LimbeckError(f"lambda_0 is {lambda_0} and tau_unlabeled {tau_unlabeled}; both must be at least 0")
        self.federation = Federate(
            "federate",
            FedLabelWork(
                LabeledWork(tau, eta, batch_size, momentum),
                tau_unlabeled,
                beta,
                lambda_0,
                confidence,
                scores,
                divergence,
                teachers,
            ),
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
