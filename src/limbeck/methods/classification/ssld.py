"""SSLD: simple semi-supervised label distillation."""

import dataclasses
from typing import Any, Literal, Self

import torch
from torch import Tensor

from limbeck.data.samples import ImageData, Samples, concat
from limbeck.data.stream import Stream
from limbeck.data.thumbnails import thumbnails
from limbeck.errors import LimbeckError
from limbeck.labels.duplicates import near_duplicates
from limbeck.labels.types import Labels
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.losses.symmetric_kl import symmetric_kl
from limbeck.methods.classification.transfer_set import choose_transfer_set
from limbeck.methods.method import Method
from limbeck.metrics.pseudo_labels import precision
from limbeck.models.classifier import Classifier
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.batch_statistics import BatchStatistics
from limbeck.teachers.frozen import Frozen
from limbeck.teachers.stored import Stored, is_stored, replay

LossName = Literal["symmetric_kl", "soft_cross_entropy"]
TeacherMode = Literal["eval", "batch_stats"]


class LabelFreeDistillation(Objective):
    """All images of the data, labelled or not, with the teacher's outputs for the same view and nothing else.

    Args:
        student: the model to train.
        teacher: its classes are the student's.
        loss: see SSLD.
        teacher_mode: see SSLD.
        head_only: train the classification head only; batch normalisation keeps its statistics.
        scores: what is known of the data, for the result.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Frozen,
        loss: LossName = "symmetric_kl",
        teacher_mode: TeacherMode = "eval",
        head_only: bool = False,
        scores: tuple[tuple[str, float], ...] = (),
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.labeller = BatchStatistics(teacher.model, teacher.classes) if teacher_mode == "batch_stats" else teacher
        self.loss, self.head_only, self.scores = loss, head_only, scores
        if head_only and student.head is not None:
            student.requires_grad_(False)
            student.body.get_submodule(student.head).requires_grad_(True)

    def teachers(self) -> dict[str, Frozen]:
        """The teacher as it is used alone, in eval mode; stored labels say nothing of other samples."""
        return {} if is_stored(self.teacher) else {"teacher": self.teacher}

    def train(self, mode: bool = True) -> Self:
        """What is frozen of the student stays in eval mode."""
        super().train(mode)
        self.student.train(mode and not self.head_only)
        return self

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream:
        """One list of images, labelled ones without their labels."""
        parts = [data.train.unlabel(), *([] if data.unlabeled is None else [data.unlabeled])]
        return Stream(concat(parts), batch_size, seed, views=data.training_views, flip=data.flip)

    def terms(self, batch: Batch) -> Terms:
        """The divergence between teacher and student."""
        teacher_logits = self.labeller(batch).logits.float()
        if "hidden_label" in batch:
            self.observe(precision=precision(Labels(teacher_logits.softmax(dim=-1)), batch["hidden_label"]))

        logits = self.student(batch).logits
        if self.loss == "soft_cross_entropy":
            return {"ce": soft_cross_entropy(logits, teacher_logits.softmax(dim=-1))}
        return {"kl": symmetric_kl(logits, teacher_logits)}

    def summary(self) -> dict[str, float]:
        """How the transfer set was chosen."""
        return dict(self.scores)


class SSLD:
    """A teacher's whole distribution on labelled and chosen unlabelled images trains a student; no label is used.

    Source: Cui et al., "Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve
    Backbones", arXiv 2103.05959 (2021), in the form of the released code (PaddleClas) and its documentation; the
    formula of the paper was not read. Temperature 1, no weight:

        L = 1/2 [KL(p_t || p_s) + KL(p_s || p_t)]     ("JS loss" there), or  L = -sum_c p_t[c] log p_s[c]

    Transfer set: from the unlabelled pool near-duplicates of validation and test images are left out; a reference
    teacher names a class for every image, and of each class the k images that it is surest of are kept; the training
    images join them without their labels. Stage 1 distils on this set, stage 2 with the same loss and about a hundredth
    of the rate on the training images alone. Then, if wanted ("Fix"), the head alone at a larger resolution.

    Choices, as the sources do not say: k (4 million images in 1,000 classes), near-duplicates by the cosine of
    thumbnails (there: SIFT) in :meth:`duplicates`, to be overridden, and the loss of the last step.

    Differs from the released code: log ratios are those of the log-softmax, without a cap; a teacher with batch
    statistics keeps its running ones, and its dropout off (there ``.train()`` reaches it, so that both move). A switch
    that multiplies the loss by the number of classes once more is left out.

    Args:
        data: with unlabelled images as the pool; without, the training images are all there is.
        student: trained from scratch (a pretrained one: with a tenth to a hundredth of the rate); without dropout.
        teacher: with the classes of the data; or a store of its labels of all images, from ``limbeck label``.
        fit: of stage 1 (paper: SGD 0.4, momentum 0.9, weight decay 7e-5, batches of 1024, 360 epochs, cosine with 5
            epochs of warm-up, for ResNet50_vd).
        finetuning: of stage 2 (paper: a hundredth of the rate, 30 epochs; 60 for ResNet50_vd).
        fixing: of the last step.
        reference: who scores the pool; null: the teacher (stored labels cannot).
        loss: the symmetric KL (the paper's choice), or soft cross-entropy (later recipes of the released code).
        k: images a class that are kept of the pool.
        duplicate_similarity: cosine from which an image of the pool counts as a held-out one; null: none does.
        teacher_mode: the teacher in eval mode, or normalised by each batch, as released.
        finetune: whether there is a stage 2.
        fix_size: side of the images in the last step, in pixels; null: there is none.
    """

    def __init__(
        self,
        data: ImageData,
        student: Classifier,
        teacher: Method,
        fit: FitSettings,
        finetuning: FitSettings,
        fixing: FitSettings | None = None,
        reference: Method | None = None,
        loss: LossName = "symmetric_kl",
        k: int = 4000,
        duplicate_similarity: float | None = 0.999,
        teacher_mode: TeacherMode = "eval",
        finetune: bool = True,
        fix_size: int | None = None,
    ) -> None:
        if k < 1 or (fix_size is not None and fix_size < 1):
            raise LimbeckError(f"k is {k} and fix_size {fix_size}; both must be at least 1")
        if duplicate_similarity is not None and not 0 < duplicate_similarity <= 1:
            raise LimbeckError(f"duplicate_similarity is {duplicate_similarity}; it must be above 0 and at most 1")
        if fix_size is not None and (fixing is None or student.head is None):
            raise LimbeckError("fix_size needs the settings fixing, and a student whose classification head is known")
        if teacher_mode == "batch_stats" and any(f.batch_size < 2 * f.accumulate for f in (fit, finetuning)):
            raise LimbeckError("teacher_mode batch_stats needs at least 2 images in each micro-batch of each fit")
        self.data, self.student, self.teacher, self.reference = data, student, teacher, reference
        self.fit, self.finetuning, self.fixing = fit, finetuning, fixing
        self.k, self.duplicate_similarity = k, duplicate_similarity
        self.options: dict[str, Any] = {"loss": loss, "teacher_mode": teacher_mode}
        self.finetune, self.fix_size = finetune, fix_size

    def program(self) -> Program:
        """Choose the transfer set, distil on it, then on the training images, then the head."""
        model = yield from self.teacher.program()
        options = {**self.options, "teacher": Frozen(model, classes=self.student.classes)}
        data = replay([model], self.data)
        if isinstance(model, Stored) and self.options["teacher_mode"] == "batch_stats":
            raise LimbeckError("teacher_mode batch_stats runs the teacher; stored labels are of one in eval mode")
        labeled = dataclasses.replace(data, unlabeled=None)
        if data.unlabeled is not None:
            reference = model if self.reference is None else (yield from self.reference.program())
            if isinstance(reference, Stored):
                raise LimbeckError(
                    "the unlabelled images are scored without augmentation, which stored labels know nothing of: give "
                    "a reference that can be run"
                )
            data, scores = yield from choose_transfer_set(
                data, Frozen(reference, classes=data.classes), self.k, self.duplicates(data.unlabeled), self.fit
            )
            options["scores"] = tuple(scores.items())
        student = yield Fit("distil", LabelFreeDistillation(self.student, **options), data, self.fit)
        if self.finetune:
            student = yield Fit("finetune", LabelFreeDistillation(student, **options), labeled, self.finetuning)
        if self.fix_size is not None and self.fixing is not None:
            student.set_preprocessing(channels=student.channels, size=self.fix_size, mean=student.mean, std=student.std)
            objective = LabelFreeDistillation(student, head_only=True, **options)
            student = (yield Fit("fix", objective, labeled, self.fixing)).requires_grad_(True)
        return student

    def duplicates(self, pool: Samples) -> Tensor:
        """Which images of the pool must be left out as they are held out elsewhere: bool [N]."""
        if self.duplicate_similarity is None:
            return torch.zeros(len(pool), dtype=torch.bool)
        held_out = torch.cat([thumbnails(self.data.validation), thumbnails(self.data.test)])
        return near_duplicates(thumbnails(pool), held_out, self.duplicate_similarity)
