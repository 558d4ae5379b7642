"""PS-KD: progressive self-knowledge distillation."""

import math
from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.refine import mix_with_past
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.models.classifier import Classifier
from limbeck.stages.objective import Batch, Objective, Plan, Terms
from limbeck.teachers.ema import EMA
from limbeck.teachers.past import PastPredictions


class PSKD(Objective):
    """The student's own prediction of the last epoch softens its label, more and more as training goes on.

    Source: Kim, Ji, Yoon, Hwang, "Self-Knowledge Distillation with Progressive Refinement of Targets",
    arXiv 2006.12000 (ICCV 2021). In epoch t of T (from 1), with P_{t-1}(x_i) the softmax output for sample i
    in the epoch before:

        alpha_t = alpha_T t / T
        q_i = (1 - alpha_t) onehot(y_i) + alpha_t P_{t-1}(x_i)
        L = -mean_i sum_c q_i[c] log softmax(z_i)[c].

    In the first epoch P_0(x_i) = onehot(y_i). Temperature 1, no other weight.

    With ``past="predictions"`` (the released code) P_{t-1} is what the student emitted for the sample in
    training mode, from the view of that epoch: no second forward pass, N C numbers of memory. With
    ``past="model"`` (described in the paper; reconstructed from memory of it) the model at the end of the last
    epoch predicts, in eval mode, on the student's own view: twice the forward passes, no memory a sample.

    Differs from the released code: a sample that an epoch skipped keeps its label until it has been seen (the
    code leaves a row of zeros), and the last model is kept, not the best on the test set. Storage in half
    precision and the constant schedule are options of ours.

    Args:
        student: the model to train.
        alpha_T: weight of the past prediction at the end of training (0.8 on CIFAR-100 in the released code;
            0.3 on ImageNet from memory of the paper).
        schedule: alpha_t grows linearly as in the paper, or is constant from the second epoch on.
        past: where past predictions come from: remembered predictions, or last epoch's model.
        storage: precision in which predictions are remembered.
    """

    updates: Tensor

    def __init__(
        self,
        student: Classifier,
        alpha_T: float = 0.8,
        schedule: Literal["linear", "constant"] = "linear",
        past: Literal["predictions", "model"] = "predictions",
        storage: Literal["float32", "float16"] = "float32",
    ) -> None:
        super().__init__()
        if not 0 <= alpha_T <= 1:
            raise LimbeckError(f"alpha_T is {alpha_T}; it must lie between 0 and 1")
        self.student = student
        self.alpha_T = alpha_T
        self.schedule = schedule
        self.past = past
        self.storage = storage
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def begin(self, plan: Plan) -> None:
        """Make the past-self teacher: one row a sample, or a copy of the model."""
        self.epochs = math.ceil(plan.epochs)
        self.updates_per_epoch = plan.updates / plan.epochs
        if self.past == "model":
            self.teacher = EMA(self.student, decay=0.0, warmup=False)
        else:
            self.memory = PastPredictions(plan.num_samples, plan.num_classes, dtype=self.storage)

    def alpha(self, epoch: Tensor) -> Tensor:
        """alpha_t of samples in ``epoch`` (from 0, so t = epoch + 1)."""
        if self.schedule == "constant":
            return torch.full_like(epoch, self.alpha_T, dtype=torch.float32)
        return self.alpha_T * ((epoch + 1) / self.epochs).clamp(max=1.0)

    def terms(self, batch: Batch) -> Terms:
        """Cross-entropy against the softened targets."""
        if self.past == "model":
            past = self.teacher(batch).logits.float().softmax(dim=-1)
            known = (self.teacher.num_updates > 0).expand(len(past))
        else:
            past, known = self.memory.read(batch["index"])
        alpha = torch.where(known, self.alpha(batch["epoch"]), 0.0)
        targets = mix_with_past(batch["label"], past, alpha)

        logits = self.student(batch).logits
        if self.past == "predictions":
            self.keep(probabilities=logits.float().softmax(dim=-1))
        return {"ce": soft_cross_entropy(logits, targets)}

    def after_update(self, batch: Batch) -> None:
        """Remember what was emitted for each sample, or copy the model when an epoch ends."""
        if self.past == "predictions":
            self.memory.write(batch["index"], batch["probabilities"])
            return
        self.updates += 1
        ended = int(int(self.updates) / self.updates_per_epoch + 1e-9)  # 2.9999999999999996 epochs are 3
        if ended > int(self.teacher.num_updates):
            self.teacher.update(self.student)
