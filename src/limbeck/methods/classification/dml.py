"""DML: deep mutual learning."""

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy, forward_kl
from limbeck.losses.entropy import entropy
from limbeck.losses.reduction import Mean
from limbeck.models.classifier import Classifier
from limbeck.models.twin import twin
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.teachers.frozen import Frozen
from limbeck.teachers.running_means import MovingMean

_MEMORY = 0.99
"""Share of the logged averages that an update leaves."""


class DML(Objective):
    """Networks that train side by side from scratch, each from the labels and from what the others say.

    Source: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", arXiv 1706.00384 (CVPR 2018), written from knowledge
    of the paper and its released code. With p_k = softmax(z_k) of K networks on the same batch, for each k

        L_k = CE(y, z_k) + 1 / (K - 1) sum_{l != k} KL(p_l || p_k),

    p_l without gradient. The paper has no temperature and no weight; with those of distillation (options of ours)
    the second part is ``lambda_kl T^2`` times the KL of the softened distributions. The student, the first of the K,
    is kept; the first peer is the second, and further ones are of its kind, with first weights of their own.

    Differs from the paper: all networks take their step at once from one forward pass each, by one optimiser (whose
    ``clip_grad_norm`` is that of all gradients together). Algorithm 1 updates them in turn, each against new
    predictions of those before it, which costs further forward passes and changes a target by one step. Differs from
    the released code: it sums over the others instead of averaging (the same for K = 2), reads another batch for each
    network, and adds 1e-8 inside the logarithm.

    The log has entropies (nats, T = 1) and training accuracies of student and peers; their moving averages over about
    100 updates, and the peers' test metrics as ``peer/...`` (further ones ``peer-2/...``), stand in ``result.json``.

    Args:
        student: the network that is kept.
        peer: the network that it learns with, of any size.
        temperature: T > 0, softens the distributions of both sides.
        lambda_kl: weight of the divergences.
        networks: K, at least 2.
    """

    student: Classifier
    peer_name: ClassVar[str] = "peer"
    """What the paper calls the other networks."""

    def __init__(
        self,
        student: Classifier,
        peer: Classifier,
        temperature: float = 1.0,
        lambda_kl: float = 1.0,
        networks: int = 2,
    ) -> None:
        super().__init__()
        name = self.peer_name
        if not temperature > 0:
            raise LimbeckError(f"temperature is {temperature}; it must be above 0")
        if networks < 2:
            raise LimbeckError(f"networks is {networks}; it must be at least 2: the student and one {name}")
        if peer is student:
            raise LimbeckError(f"student and {name} are one and the same network; they must be two")
        if peer.classes != student.classes:
            raise LimbeckError(
                f"the {name} has the classes {list(peer.classes)} and the student {list(student.classes)}: "
                "they learn from each other and must have the same"
            )
        if not lambda_kl >= 0:
            raise LimbeckError(f"lambda_kl is {lambda_kl}; it must be at least 0")
        self.student = student
        self.peers = nn.ModuleList([peer, *(twin(peer) for _ in range(networks - 2))])
        self.student_entropy, self.peer_entropy = MovingMean(_MEMORY), MovingMean(_MEMORY)
        self.temperature = temperature
        self.lambda_kl = self.peer_lambda_kl = lambda_kl

    def terms(self, batch: Batch) -> Terms:
        """Each network's cross-entropy, and its divergences from the others; the peers' are added up."""
        logits = [network(batch).logits for network in (self.student, *self.peers)]
        fixed = [z.detach() for z in logits]
        self.watch(batch, fixed)

        labelled = batch["label"] >= 0
        hard = [cross_entropy(z, batch["label"], weight=labelled, reduction="none") for z in logits]
        terms: Terms = {
            "ce": Mean.of(hard[0], labelled),
            f"{self.peer_name}_ce": Mean.of(torch.stack(hard[1:]).sum(0), labelled),
        }
        if self.lambda_kl:
            scale = self.lambda_kl * self.temperature**2
            of_student = self.student_divergences(logits[0], torch.stack(fixed[1:]))
            terms |= {name: scale * value for name, value in of_student.items()}
        if self.peer_lambda_kl:
            scale = self.peer_lambda_kl * self.temperature**2
            others = [torch.stack(fixed[:k] + fixed[k + 1 :]) for k in range(1, len(fixed))]
            kls = [self.mutual_kl(own, rest) for own, rest in zip(logits[1:], others, strict=True)]
            terms[f"{self.peer_name}_kl"] = scale * torch.stack(kls).sum()
        return terms

    def student_divergences(self, own: Tensor, others: Tensor) -> dict[str, Tensor]:
        """What the student [B, C] learns from the others [K - 1, B, C]: means over both, not yet scaled."""
        return {"kl": self.mutual_kl(own, others)}

    def mutual_kl(self, own: Tensor, others: Tensor) -> Tensor:
        """KL(p_l || p_k) of a network [B, C] and the others [K - 1, B, C]: the mean over others and batch."""
        return forward_kl(own.expand_as(others), others, temperature=self.temperature)

    def watch(self, batch: Batch, logits: list[Tensor]) -> None:
        """Log how sure the networks are of themselves, and how often they are right."""
        labelled = batch["label"] >= 0
        for name, part in (("student", logits[:1]), (self.peer_name, logits[1:])):
            said = torch.stack(part)
            entropies = entropy(said, reduction="none").mean(0)
            right = (said.argmax(-1) == batch["label"]).float().mean(0)
            self.observe(**{f"{name}_entropy": Mean.of(entropies), f"{name}_accuracy": Mean.of(right, labelled)})
            self.keep(**{"student_entropy" if name == "student" else "peer_entropy": entropies})

    def after_update(self, batch: Batch) -> None:
        """Remember the entropies."""
        self.student_entropy.update(batch["student_entropy"])
        self.peer_entropy.update(batch["peer_entropy"])

    def summary(self) -> dict[str, float]:
        """The entropies in nats, moving averages over the last updates."""
        return {
            "student_entropy": float(self.student_entropy.average),
            f"{self.peer_name}_entropy": float(self.peer_entropy.average),
        }

    def teachers(self) -> dict[str, Frozen]:
        """Copies of the peers, measured beside the student at the end; none before training, when they know nothing."""
        if not int(self.student_entropy.num_batches):
            return {}
        names = [self.peer_name, *(f"{self.peer_name}-{number}" for number in range(2, len(self.peers) + 1))]
        return {name: Frozen(copy.deepcopy(peer)) for name, peer in zip(names, self.peers, strict=True)}
