"""BD-KD: balanced divergences for online distillation."""

from typing import ClassVar

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.losses.divergence import forward_kl, reverse_kl
from limbeck.losses.entropy_gap import Direction, entropy_gap_weights
from limbeck.losses.reduction import Mean
from limbeck.methods.classification.dml import DML
from limbeck.models.classifier import Classifier
from limbeck.stages.objective import Batch
from limbeck.teachers.running_means import MovingMean


class BDKD(DML):
    """A big teacher and a small student train together; each sample tells the student which way to follow.

    Source: Amara, Sepahvand, Meyer, Gross, Clark, "BD-KD: Balancing the Divergences for Online Knowledge
    Distillation", arXiv 2212.12965 (2022, second version 2024). Both start from scratch and see the same batches. With
    p_s, p_t the softmax of the logits over T, entropies H, and the other network always without gradient:

        (w_f, w_r) = (delta, 1) where H_t > H_s,  (1, delta) where H_t < H_s,  (1, 1) where they are equal
        L_S = CE(y, z_s) + lambda_s T^2 mean_b [w_f KL(p_t || p_s) + w_r KL(p_s || p_t)]
        L_T = CE(y, z_t) + lambda_t T^2 mean_b KL(p_s || p_t).

    A student that is surer of itself than the teacher follows the forward KL more and becomes broader; one that is
    less sure follows the reverse KL more and becomes sharper. Entropies are those of the softened distributions.
    L_T is the term of mutual learning; for the teacher it is a reverse KL. ``lambda_t = 0`` leaves the teacher's
    learning alone, as the abstract of the first version has it; the second version adjusts both losses.

    Reconstruction: there is no released code, and neither the paper's equations nor its tables were at hand. The two
    KLs, the weights a sample by the gap of the entropies, and the teacher's regulariser are from a summary of the
    paper; their form here is derived. The direction is derived too, and the same in a third party's re-implementation,
    which has no teacher, no T^2 and T = 1. delta = 2 is from memory (that code's comments say 2, its value is 3);
    T = 4, lambda_s = lambda_t = 1 and the average over several teachers are choices. delta = 1 makes the student's
    term Jeffreys' divergence.

    Weighted sums of both KLs have large, noisy gradients where one of the probabilities is about 0 (arXiv 2505.04560):
    keep T above 1 or lambda_s small, and clip (``fit.clip_grad_norm``), which also logs the norm. One optimiser steps
    both networks, as in :class:`~limbeck.methods.classification.dml.DML`, whose log and results these are too.

    Args:
        student: the network that is kept.
        teacher: the network that it learns with, usually larger.
        delta: weight of the divergence that is stressed, at least 1.
        temperature: T > 0, of both divergences and of the entropies.
        lambda_s: weight of the student's divergences.
        lambda_t: weight of the teacher's divergence.
        direction: which divergence is stressed: as above, or the other one.
        networks: 2, or more for further teachers like the first: pairwise terms are averaged.
    """

    peer_name: ClassVar[str] = "teacher"

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        delta: float = 2.0,
        temperature: float = 4.0,
        lambda_s: float = 1.0,
        lambda_t: float = 1.0,
        direction: Direction = "balancing",
        networks: int = 2,
    ) -> None:
        nothing = torch.zeros(1, 1)
        entropy_gap_weights(nothing, nothing, delta=delta, direction=direction)  # refuses what it cannot take
        for name, number in (("lambda_s", lambda_s), ("lambda_t", lambda_t)):
            if not number >= 0:
                raise LimbeckError(f"{name} is {number}; it must be at least 0")
        super().__init__(student, teacher, temperature, lambda_s, networks)
        self.forward_stressed, self.reverse_stressed = MovingMean(None), MovingMean(None)
        self.delta = delta
        self.direction: Direction = direction
        self.peer_lambda_kl = lambda_t

    def student_divergences(self, own: Tensor, others: Tensor) -> dict[str, Tensor]:
        """Forward and reverse KL, the one stressed that brings the student's entropy to the teacher's."""
        own, T = own.expand_as(others), self.temperature
        weights = entropy_gap_weights(own, others, delta=self.delta, direction=self.direction, temperature=T)
        forward_stressed, reverse_stressed = ((weight > 1).float().mean(0) for weight in weights)
        self.observe(forward_stressed=Mean.of(forward_stressed), reverse_stressed=Mean.of(reverse_stressed))
        self.keep(forward_stressed=forward_stressed, reverse_stressed=reverse_stressed)

        forward = forward_kl(own, others, temperature=T, reduction="none")
        reverse = reverse_kl(own, others, temperature=T, reduction="none")
        # Not the reduction's weighted mean, which would divide by the sum of the weights.
        return {"forward": (weights.forward * forward).mean(), "reverse": (weights.reverse * reverse).mean()}

    def after_update(self, batch: Batch) -> None:
        """Remember the entropies, and which divergence was stressed how often."""
        super().after_update(batch)
        if self.lambda_kl:
            self.forward_stressed.update(batch["forward_stressed"])
            self.reverse_stressed.update(batch["reverse_stressed"])

    def summary(self) -> dict[str, float]:
        """The entropies, and over all of training the shares of the samples where each divergence was stressed."""
        found = super().summary()
        if self.lambda_kl:
            found["forward_stressed"] = float(self.forward_stressed.average)
            found["reverse_stressed"] = float(self.reverse_stressed.average)
        return found
