"""TAID: temporally adaptive interpolated distillation."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.interpolate import interpolate
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.losses.fused_linear import fused_linear_cross_entropy, fused_linear_divergence
from limbeck.losses.tokens import next_tokens, predictors
from limbeck.methods.language.tokens import TokenObjective
from limbeck.models.causal_lm import CausalLM, check_vocabularies
from limbeck.stages.objective import Batch, Plan, Terms
from limbeck.teachers.frozen import Frozen
from limbeck.teachers.interpolation import AdaptiveInterpolation


class TAID(TokenObjective):
    """The target moves from the student's own prediction to the teacher's, as fast as the student follows.

    Source: Shing, Misaki, Bao, Yokoi, Akiba, "TAID: Temporally Adaptive Interpolated Distillation for Efficient
    Knowledge Transfer in Language Models", arXiv 2501.16937 (ICLR 2025), equations 2 to 6. With logits z_s of the
    student and z_t of the teacher for every token that counts, and sg that stops the gradient:

        p_t = softmax((1 - t) sg(z_s) + t z_t)
        L = (1 - r) CE(y, z_s) - r mean_tokens sum_v p_t[v] log softmax(z_s)[v].

    After every update t moves on (:class:`~limbeck.teachers.interpolation.AdaptiveInterpolation`), faster while the
    loss falls. The paper writes KL(p_t || q); as in the released code the cross-entropy stands here. Its gradient is
    the same, but its value holds the entropy of p_t, and this value drives t.

    Differs from the released code: t is updated once an optimiser update, from the mean loss over micro-batches and
    processes (there once a micro-batch, by each process for itself), and stays where it is in validation (there it
    moves on). The floor under t is that of the code; from memory, the paper's algorithm has none.

    Args:
        student: the model to train.
        teacher: a trained model with the same tokenizer.
        t_start: t of the first update (0.4 for Phi-3 to TinyLlama, 0.2 for the code's two other pairs).
        t_end: t at the end.
        alpha: largest step of t. With 5e-4 the adaptive part shows in runs of more than some 4,000 updates: in one
            of N updates take about 8 / N.
        beta: momentum of the loss's relative improvement.
        adaptive: false moves t linearly, the paper's ablation.
        distil_ratio: r, share of the distillation term.
    """

    student: CausalLM

    def __init__(
        self,
        student: CausalLM,
        teacher: Frozen,
        t_start: float = 0.4,
        t_end: float = 1.0,
        alpha: float = 5e-4,
        beta: float = 0.99,
        adaptive: bool = True,
        distil_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < distil_ratio <= 1:
            raise LimbeckError(f"distil_ratio is {distil_ratio}; it must be above 0 and at most 1")
        check_vocabularies(student, teacher)
        self.student = student
        self.teacher = teacher
        self.distil_ratio = distil_ratio
        self.interpolation = AdaptiveInterpolation(t_start, t_end, alpha, beta, adaptive)

    def begin(self, plan: Plan) -> None:
        """Learn how long training is: the end of the floor under t."""
        self.total = plan.updates

    def terms(self, batch: Batch) -> Terms:
        """Cross-entropy against the intermediate distribution, and against the data where r < 1."""
        teacher = predictors(self.teacher(batch).projection)
        own, targets, valid = next_tokens(self.student(batch).projection, batch["labels"])
        loss = fused_linear_divergence(own, teacher, self.divergence, weight=valid)

        self.keep(loss=loss.total[None], tokens=torch.as_tensor(loss.count)[None])
        self.observe(t=self.interpolation.t, momentum=self.interpolation.momentum)
        terms: Terms = {"taid": loss.times(self.distil_ratio)}
        if self.distil_ratio < 1:
            terms["ce"] = fused_linear_cross_entropy(own, targets, weight=valid).times(1 - self.distil_ratio)
        return terms

    def divergence(self, student: Tensor, teacher: Tensor, **reduction: Any) -> Tensor:
        """``-sum_v p_t[v] log softmax(z_s)[v]`` of logits [N, V]."""
        found: Tensor = soft_cross_entropy(student, interpolate(student, teacher, self.interpolation.t), **reduction)
        return found

    def after_update(self, batch: Batch) -> None:
        """Move t by the mean loss of the update, over all its micro-batches and processes."""
        sums = torch.stack([batch["loss"].double().sum(), batch["tokens"].double().sum()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        self.interpolation.update(sums[0] / sums[1].clamp(min=1), self.total)
