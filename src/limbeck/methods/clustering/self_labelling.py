"""Self-labelling: a network learns the clusters that transport makes of its own predictions."""

import math
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from limbeck.data.samples import ImageData
from limbeck.data.semi_supervised import without_labels
from limbeck.data.stream import Stream, eval_batches
from limbeck.labels.assign.k_means import k_means
from limbeck.labels.assign.transport import transport
from limbeck.labels.types import Labels
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.metrics.clustering import clustering_summary, matched_precision
from limbeck.metrics.pseudo_labels import coverage
from limbeck.models.clusterer import Clusterer
from limbeck.stages.evaluation import as_shipped, predict_logits
from limbeck.stages.evaluation.representation import embed
from limbeck.stages.objective import Batch, Objective, Plan, Terms
from limbeck.teachers.ema import EMA
from limbeck.teachers.key_queue import KeyQueue

PROBED = (0.1, 0.3, 1.0)
"""Masses at which the precision of the finished model's pseudo labels is measured."""


def sigmoid_ramp(progress: float, start: float) -> float:
    """``start + (1 - start) e^(-5 (1 - t)^2)``: from a little above ``start`` at t = 0 to 1 at t = 1.

    Args:
        progress: t, the share of training that is over.
        start: rho_0.
    """
    return start + (1 - start) * math.exp(-5 * (1 - progress) ** 2)


class SelfLabelling(Objective):
    """Each view of an image learns the cluster that transport gives the other; see P2OT for the arguments."""

    student: Clusterer
    progress: ClassVar[tuple[str, str]] = ("nmi", "higher")
    updates: Tensor
    potentials: Tensor
    losses: Tensor
    steps: Tensor
    lowest: Tensor

    def __init__(
        self,
        student: Clusterer,
        data: ImageData,
        epsilon: float,
        gamma: float,
        rho_0: float,
        bank: int,
        view: str,
        select: Literal["loss", "last"],
    ) -> None:
        super().__init__()
        self.student, self.epsilon, self.gamma, self.rho_0 = student, epsilon, gamma, rho_0
        self.bank_factor, self.view, self.data, self.samples = bank, view, data, without_labels(data)
        self.features = embed(student.encoder, self.samples)
        self.test_features = embed(student.encoder, data.test)
        self.best = EMA(student, decay=0.0, warmup=False) if select == "loss" else None
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        # Of both views and every head; the virtual column's is the last.
        width = student.clusters + (rho_0 < 1)
        self.register_buffer("potentials", torch.zeros(2, len(student.heads), width, dtype=torch.float64))
        self.register_buffer("losses", torch.zeros(len(student.heads)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("lowest", torch.tensor(math.inf))

    def trained(self) -> Clusterer:
        """The model of the epoch with the lowest loss a transported sample, or the last."""
        return self.student if self.best is None else cast("Clusterer", self.best.model)

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream:
        """All training images in two views each."""
        return Stream(self.samples, batch_size, seed, views={"a": self.view, "b": f"{self.view}:2"}, flip=data.flip)

    def begin(self, plan: Plan) -> None:
        """Fill the bank."""
        self.plan = plan
        batch = round(plan.epochs * len(self.samples) / plan.updates)
        size = max(1, min((self.bank_factor - 1) * batch, len(self.samples) - batch))
        self.bank = KeyQueue(size, len(self.student.heads) * self.student.clusters)
        with as_shipped(self.student) as place:
            for some in eval_batches(self.samples.subset(torch.arange(size)), 256):
                self.bank.push(self.student.every({"image": some["image"].to(place)}).flatten(1).cpu(), some["index"])

    @property
    def rho(self) -> float:
        """The share of all samples that is transported now."""
        # Below 1 to the last update: there is always a virtual column, or never.
        progress = min(int(self.updates), self.plan.updates - 1) / self.plan.updates
        return sigmoid_ramp(progress, self.rho_0)

    def assign(self, cost: Tensor, rows: Tensor, index: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The plan [N, K] for one head, and its column potentials; ``index`` [N] says which samples the rows are."""
        found = transport(cost, self.epsilon, gamma=self.gamma, mass=self.rho, rows=rows, start=start)
        return found.plan, found.potential

    def pseudo_labels(self, logits: Tensor, index: Tensor, view: int) -> tuple[Tensor, Tensor]:
        """Clusters [B, heads, K] of a batch, rows of sum <= 1, and potentials [heads, K or K + 1].

        The batch takes the place of what the bank holds of the same samples.
        """
        everything = torch.cat([self.bank.keys.view(-1, *logits.shape[1:]), logits.detach().float()])
        fresh = (self.bank.labels >= 0) & ~torch.isin(self.bank.labels, index)
        rows = torch.cat([fresh, torch.ones_like(index, dtype=torch.bool)]).double()
        rows /= rows.sum()
        which = torch.cat([self.bank.labels, index])
        cost = -everything.double().log_softmax(-1)
        plans = [self.assign(cost[:, h], rows, which, self.potentials[view, h]) for h in range(logits.shape[1])]
        batch = torch.stack([plan[-len(index) :] for plan, _ in plans], dim=1) / rows[-1]
        return batch.float(), torch.stack([potential for _, potential in plans])

    def terms(self, batch: Batch) -> Terms:
        """Soft cross-entropy of each view with the other's clusters, summed over views and heads."""
        a, b = self.student.every({"image": torch.cat([batch["a"], batch["b"]])}).chunk(2)
        (of_a, first), (of_b, second) = (self.pseudo_labels(x, batch["index"], n) for n, x in enumerate((a, b)))
        labels = Labels(of_a[:, 0], of_a[:, 0].sum(-1))
        self.observe(coverage=coverage(labels), rho=torch.tensor(self.rho))
        if "hidden_label" in batch:
            self.observe(precision=matched_precision(labels, batch["hidden_label"]))

        losses = soft_cross_entropy(a, of_b, reduction="none") + soft_cross_entropy(b, of_a, reduction="none")
        # Potentials are no values of a sample, but micro-batches are joined by samples: the last one's is what counts.
        potentials = torch.stack([first, second]).expand(len(a), -1, -1, -1)
        self.keep(logits=b.flatten(1), losses=losses, potentials=potentials)
        return {"clusters": losses.mean(0).sum()}

    def after_update(self, batch: Batch) -> None:
        """Remember logits and potentials; after an epoch, choose the head and keep the model if it is the best."""
        self.bank.push(batch["logits"], batch["index"])
        self.potentials.copy_(batch["potentials"][-1])
        self.losses += batch["losses"].mean(0) / self.rho
        self.steps += 1
        self.updates += 1
        epochs = int(self.updates) * self.plan.epochs / self.plan.updates
        before = (int(self.updates) - 1) * self.plan.epochs / self.plan.updates
        if int(epochs + 1e-9) > int(before + 1e-9) or int(self.updates) == self.plan.updates:
            losses = self.losses / self.steps
            self.student.chosen.copy_(losses.argmin())
            if self.best is not None and bool(losses.amin() <= self.lowest):
                self.lowest.copy_(losses.amin())
                self.best.update(self.student)
            self.losses.zero_()
            self.steps.zero_()

    def summary(self) -> dict[str, float]:
        """K-means on the first features, and how precise the finished model's pseudo labels are at some masses."""
        found = k_means(self.features, self.student.clusters, seed=0).predict(self.test_features)
        scores = clustering_summary(found, self.data.test.labels)
        some = self.samples.subset(torch.arange(min(len(self.samples), len(self.bank.labels))))
        numbers = {f"k_means/{name}": value for name, value in scores.items()}
        if some.hidden_labels is None or not (some.hidden_labels >= 0).any():
            return numbers
        cost = -predict_logits(self.trained(), some).logits.double().log_softmax(-1)
        for mass in PROBED:
            plan = transport(cost, self.epsilon, gamma=self.gamma, mass=mass).plan
            right = matched_precision(Labels(plan, plan.sum(-1)), some.hidden_labels)
            numbers[f"precision/{mass:g}"] = float(right.value)
        return numbers
