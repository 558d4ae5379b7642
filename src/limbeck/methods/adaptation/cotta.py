"""CoTTA: continual test-time adaptation."""

import copy
from typing import Literal, cast

import torch
from torch import Tensor

from limbeck.data.corrupted import CorruptedData
from limbeck.data.tta import SOFT, STRONG, katana
from limbeck.errors import LimbeckError
from limbeck.labels.thresholds import quantile_threshold
from limbeck.losses.consistency import consistency_cross_entropy
from limbeck.methods.method import Method
from limbeck.models.batch_norm import batch_norms, use_batch_statistics
from limbeck.models.classifier import Classifier
from limbeck.models.restoration import restore_stochastically
from limbeck.stages.evaluation import predict_logits
from limbeck.stages.objective import Batch, Terms
from limbeck.stages.stage import Program
from limbeck.stages.stream import Adapt, Adapter, online
from limbeck.teachers.ema import EMA
from limbeck.teachers.frozen import Frozen


class CoTTAAdapter(Adapter):
    """The student follows its own average, which looks twice where the source model is unsure.

    Arguments as of :class:`CoTTA`; ``p_th`` is a number, and ``flip`` says whether augmentation may mirror.
    """

    def __init__(
        self, source: Classifier, alpha: float, p: float, p_th: float, N: int, loss: str, augmentation: str, flip: bool
    ) -> None:
        super().__init__()
        self.student = copy.deepcopy(source).requires_grad_(True)
        if batch_norms(self.student):
            use_batch_statistics(self.student)
        self.teacher = EMA(self.student, decay=alpha, warmup=False)
        self.anchor = Frozen(copy.deepcopy(self.student))
        self.p = p
        self.p_th = p_th
        self.N = N
        self.loss = loss
        self.augmentation = augmentation
        self.flip = flip

    def terms(self, batch: Batch) -> Terms:
        """Consistency of the student with the teacher, whose output is the answer."""
        logits = self.student(batch).logits
        confidence = self.anchor(batch).logits.float().softmax(dim=-1).amax(dim=-1).mean()
        unsure = bool(confidence < self.p_th)
        target = self.augmented(batch["image"]) if unsure else self.teacher(batch).logits.float()

        self.keep(logits=target)
        self.observe(confidence=confidence, augmented=confidence.new_tensor(float(unsure)))
        return {"consistency": consistency_cross_entropy(logits, target, symmetric=self.loss == "symmetric")}

    def augmented(self, images: Tensor) -> Tensor:
        """The teacher's mean logits over N augmented readings of the batch."""
        ranges = SOFT if self.augmentation == "soft" else STRONG
        total = torch.zeros((), device=images.device)
        for _ in range(self.N):
            view = katana(images, flip=self.flip, ranges=ranges)
            total = total + self.teacher({"image": view}).logits.float()
        return total / self.N

    def after_update(self, batch: Batch) -> None:
        """The teacher follows the student, then a part of the student goes back to the source."""
        self.teacher.update(self.student)
        restore_stochastically(self.student, self.anchor.model, self.p)

    def trained(self) -> Classifier:
        """The teacher: it is what answers."""
        return cast("Classifier", self.teacher.model)


class CoTTA:
    """A model adapts to test domains that keep changing, without drifting away from what it knew.

    Source: Wang, Fink, Van Gool, Dai, "Continual Test-Time Domain Adaptation", arXiv 2203.13591 (CVPR 2022). Student
    f_theta, teacher f_theta' (its EMA) and anchor f_theta0 (the source) begin equal. For every batch x, once:

        c = mean_b max_k softmax(f_theta0(x))_bk
        z' = f_theta'(x) if c >= p_th, else (1/N) sum_i f_theta'(aug_i(x)); the answer is z'
        L = -(1/B) sum_b sum_k softmax(z')_bk log softmax(f_theta(x))_bk; one step on all of theta
        theta' <- alpha theta' + (1 - alpha) theta
        theta <- M theta_0 + (1 - M) theta, M ~ Bernoulli(p) elementwise.

    Batch normalisation of all three uses the statistics of the batch, so batches must not be tiny. As in the released
    code c is one number a batch (the paper's text decides by image) and logits are averaged, not probabilities; as
    in its ImageNet version the N passes run only where they are used. Differs from the released code: all trainable
    parameters are trained and restored, not only those called weight or bias (the same but for transformers);
    dropout is off.

    Args:
        teacher: the source model: a saved one, or the method that trains it on the clean images.
        data: the stream.
        alpha: EMA rate of the teacher.
        p: chance of a weight to be restored (0.01 on CIFAR, 0.001 on ImageNet).
        p_th: augment where the anchor's confidence is below (0.92 on CIFAR-10-C, 0.72 on CIFAR-100-C, 0.1 on
            ImageNet-C). "auto" is the author's rule: the 5% quantile of the source model's confidence on source
            data less 0.05. What is compared are means over batches, so here the quantile is over batches, drawn from
            the clean validation images: no mean falls below a low quantile of single images.
        N: augmented readings.
        loss: one-sided as in the paper, or symmetric: the mean of both cross-entropies, as the released ImageNet
            code has it.
        augmentation: strong, or soft with about half the ranges, which the released code has but does not use.
        optimizer: Adam, or SGD as on ImageNet.
        lr: learning rate (Adam 1e-3 with batches of 200, SGD 0.01 with batches of 64).
        momentum: of SGD, or the first beta of Adam.
    """

    def __init__(
        self,
        teacher: Method,
        data: CorruptedData,
        alpha: float = 0.999,
        p: float = 0.01,
        p_th: float | Literal["auto"] = 0.92,
        N: int = 32,
        loss: Literal["one-sided", "symmetric"] = "one-sided",
        augmentation: Literal["strong", "soft"] = "strong",
        optimizer: Literal["adam", "sgd"] = "adam",
        lr: float = 1e-3,
        momentum: float = 0.9,
    ) -> None:
        for name, share in (("alpha", alpha), ("p", p)):
            if not 0 <= share <= 1:
                raise LimbeckError(f"{name} is {share}; it must lie between 0 and 1")
        if p_th != "auto" and not p_th >= 0:
            raise LimbeckError(f"p_th is {p_th}; it must be a confidence from 0 on, or auto")
        if N < 1:
            raise LimbeckError(f"N is {N}; it must be at least 1")
        self.teacher = teacher
        self.data = data
        self.alpha = alpha
        self.p = p
        self.p_th = p_th
        self.N = N
        self.loss = loss
        self.augmentation = augmentation
        self.settings = online(self.data.stream.batch_size, optimizer, lr, momentum)

    def program(self) -> Program:
        """Train the source model where need be, choose the threshold, adapt to the stream."""
        source = yield from self.teacher.program()
        threshold = self.threshold(source)
        adapter = CoTTAAdapter(
            source, self.alpha, self.p, threshold, self.N, self.loss, self.augmentation, self.data.flip
        )
        return (yield Adapt("adapt", adapter, source, self.data, self.settings))

    def threshold(self, source: Classifier) -> float:
        """p_th, or what the author's rule makes of the source model's confidences."""
        if self.p_th != "auto":
            return self.p_th
        logits = predict_logits(source, self.data.validation).logits
        batches = torch.randint(len(logits), (1000, self.data.stream.batch_size))
        return quantile_threshold(logits.softmax(dim=-1).amax(dim=-1)[batches].mean(dim=1))
