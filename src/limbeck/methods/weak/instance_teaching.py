"""INS, second stage: pseudo labels from prototypes teach an instance classifier, and it teaches the prototypes."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.data.instance_bags import InstanceBagData
from limbeck.data.stream import Stream
from limbeck.labels.candidates import best_candidate, uniform_over
from limbeck.labels.prototypes import move_prototypes, prototype_probabilities
from limbeck.labels.refine import mix_with_past
from limbeck.labels.types import Labels
from limbeck.losses.divergence import cross_entropy, soft_cross_entropy
from limbeck.losses.feature import direction
from limbeck.losses.reduction import Mean, in_full
from limbeck.losses.supervised_contrastive import supervised_contrastive
from limbeck.metrics.pseudo_labels import precision
from limbeck.models.bag_classifier import BagClassifier
from limbeck.models.heads import ContrastiveHead, num_features
from limbeck.stages.objective import Batch, Objective, Plan, Terms
from limbeck.teachers.ema import EMA
from limbeck.teachers.gather import gather_batch
from limbeck.teachers.key_queue import KeyQueue
from limbeck.teachers.past import PastPredictions


class InstanceTeaching(Objective):
    """The second stage of :class:`limbeck.methods.weak.ins_mil.INSMIL`; equations and arguments as there."""

    student: BagClassifier
    progress: ClassVar[tuple[str, str]] = ("instance_auc", "higher")
    prototypes: Tensor
    right: Tensor

    def __init__(
        self,
        student: BagClassifier,
        *,
        prot_start: int,
        bag_start: int,
        contrast_weight: float,
        bag_weight: float,
        phi_start: float,
        phi_end: float,
        beta: float,
        tau: float,
        queue: int,
        dim: int,
        key_momentum: float,
        reset_negatives: bool,
    ) -> None:
        super().__init__()
        self.student = student
        self.prot_start, self.bag_start = prot_start, bag_start
        self.contrast_weight, self.bag_weight = contrast_weight, bag_weight
        self.phi_start, self.phi_end, self.beta, self.tau = phi_start, phi_end, beta, tau
        self.reset_negatives = reset_negatives
        self.projection = ContrastiveHead(num_features(student.encoder, "INS"), dim, layers=2, batch_norm=False)
        self.key_encoder = EMA(student.encoder, decay=key_momentum, warmup=False, buffers="average")
        self.key_projection = EMA(self.projection, decay=key_momentum, warmup=False)
        self.queue = KeyQueue(queue, dim)
        self.register_buffer("prototypes", torch.zeros(2, dim))
        # Right pseudo labels of positive bags and how many there were, in the first and in the last epoch that has
        # them: for the summary only.
        self.register_buffer("right", torch.zeros(2, 2))

    def begin(self, plan: Plan) -> None:
        """Make the table of pseudo labels, one row an instance."""
        self.epochs = plan.epochs
        self.table = PastPredictions(plan.num_samples, 2)

    def streams(self, data: InstanceBagData, batch_size: int, seed: int) -> dict[str, Stream]:
        """Instances in two views, and as many bags as keep step with them."""
        views = {"query": data.view, "key": "strong"}
        found = {"instances": Stream(data.train.instances, batch_size, seed, views=views, flip=data.flip)}
        if self.bag_weight:
            bags = -(-batch_size * len(data.train) // len(data.train.instances))
            views = dict(data.training_views)
            found["bags"] = Stream(data.train, bags, seed, views=views, name="bags", flip=data.flip)
        return found

    def terms(self, batch: Mapping[str, Any]) -> Terms:
        """Instance classification against pseudo labels, contrast of instances, and the labels of bags."""
        instances = batch["instances"]
        said = self.student.encoder(instances["query"])
        query = direction(in_full(self.projection(said.features)))
        key = direction(in_full(self.key_projection(self.key_encoder(instances["key"]).features)))

        candidates = self.candidates(instances["label"])
        predicted = best_candidate(said.logits.detach(), candidates)
        target = self.pseudo_labels(instances, query.detach(), candidates)
        self.keep(query=query, key=key, predicted=predicted, target=target)
        self.watch(instances, target)
        terms: Terms = {
            "ce": soft_cross_entropy(said.logits, target),
            "contrast": self.contrast_weight * self.contrast(query, key, predicted, instances["epoch"]),
        }
        if "bags" in batch:
            terms["bag"] = self.bag_loss(batch["bags"], instances["epoch"]).times(self.bag_weight)
        return terms

    def candidates(self, bag_label: Tensor) -> Tensor:
        """Y, the classes that instances may have, bool [B, 2]: of a negative bag negative, of a positive one both."""
        maybe = bag_label == 1 if self.reset_negatives else torch.ones_like(bag_label, dtype=torch.bool)
        return torch.stack([torch.ones_like(maybe), maybe], dim=1)

    def pseudo_labels(self, instances: Batch, query: Tensor, candidates: Tensor) -> Tensor:
        """Targets s of a batch [B, 2], moved to the class of the nearest prototype once prototypes count."""
        past, known = self.table.read(instances["index"])
        past = torch.where(known[:, None], past, uniform_over(candidates))
        nearest = best_candidate(prototype_probabilities(query, self.prototypes), candidates)
        phi = self.phi_start + (self.phi_end - self.phi_start) * (instances["epoch"] / self.epochs).clamp(max=1.0)
        moved = mix_with_past(nearest, past, phi)
        return torch.where((instances["epoch"] >= self.prot_start)[:, None], moved, past)

    def contrast(self, query: Tensor, key: Tensor, predicted: Tensor, epoch: Tensor) -> Tensor:
        """Each query with its own key among the queue; later with all of its predicted class among all others."""
        queued = self.queue.labels
        seen = (queued >= 0).expand(len(query), -1)
        own = torch.eye(len(query), dtype=torch.bool, device=query.device)
        alike = predicted[:, None] == predicted
        early, late = torch.zeros_like(own), (epoch >= self.prot_start)[:, None]

        family = torch.cat([alike & ~own, alike, predicted[:, None] == queued], dim=1)
        family = torch.where(late, family, torch.cat([early, own, torch.zeros_like(seen)], dim=1))
        candidates = torch.cat([~own, torch.ones_like(own), seen], dim=1)
        candidates = torch.where(late, candidates, torch.cat([early, own, seen], dim=1))
        pool = torch.cat([query, key, self.queue.keys])
        return supervised_contrastive(query, pool, family, candidates, temperature=self.tau)

    def bag_loss(self, bags: Batch, epoch: Tensor) -> Mean:
        """Cross-entropy of the pooled predictions, once bags count; before, no network reads them."""
        if bool((epoch < self.bag_start).any()):
            return Mean(epoch.new_zeros((), dtype=torch.float32), epoch.new_zeros((), dtype=torch.float32))
        return Mean.of(cross_entropy(self.student(bags).logits, bags["label"], reduction="none"))

    def watch(self, instances: Batch, target: Tensor) -> None:
        """Log what pseudo labels say of the instances of positive bags."""
        open_ones = instances["label"] == 1
        labels = Labels(target, open_ones.float())
        self.observe(positive_share=Mean.of(labels.predicted().float(), open_ones))
        if "hidden_label" in instances:
            self.observe(precision=precision(labels, instances["hidden_label"]))
            self.keep(counted=open_ones, correct=open_ones & (labels.predicted() == instances["hidden_label"]))

    def after_update(self, batch: Mapping[str, Any]) -> None:
        """Remember pseudo labels, move prototypes and key encoder, and enqueue the keys."""
        instances = batch["instances"]
        self.table.write(instances["index"], batch["target"])
        query, predicted = gather_batch(batch["query"]), gather_batch(batch["predicted"])
        self.prototypes.copy_(move_prototypes(self.prototypes, query, predicted, self.beta))
        self.queue.push(batch["key"], batch["predicted"])
        self.key_encoder.update(self.student.encoder)
        self.key_projection.update(self.projection)
        if "correct" in batch:
            for row, epoch in enumerate((self.prot_start, math.ceil(self.epochs) - 1)):
                there = instances["epoch"] == epoch
                counts = (there & batch["correct"]).sum(), (there & batch["counted"]).sum()
                self.right[row] += gather_batch(torch.stack(counts)[None]).sum(0)

    def summary(self) -> dict[str, float]:
        """Accuracy of the pseudo labels of positive bags, in the first and in the last epoch with prototypes."""
        names = ("pseudo_accuracy/first", "pseudo_accuracy/last")
        found = zip(names, self.right.tolist(), strict=True)
        return {name: right / count for name, (right, count) in found if count}
