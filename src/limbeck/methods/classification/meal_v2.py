"""MEAL V2: an ensemble of teachers and a discriminator, without labels."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.labels.mix import cutmix
from limbeck.labels.mix_rows import cutmix_images
from limbeck.labels.types import Labels
from limbeck.losses.adversarial import reverse_gradient, student_teacher_discriminator
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.methods.committee import check_committee, squeeze
from limbeck.methods.method import Method
from limbeck.models.classifier import Classifier
from limbeck.models.discriminator import logits_discriminator
from limbeck.stages.engine import Engine
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.frozen import Frozen
from limbeck.teachers.stored import is_stored, replay

Mode = Literal["cooperative", "adversarial", "off"]
Combine = Literal["mean", "random"]


class EnsembleDistillation(Objective):
    """The similarity loss and the discriminator loss of MEAL V2; arguments as of :class:`MEALV2`.

    Args:
        student: starts from weights of its own.
        teachers: M frozen networks of the student's classes, or stored labels of such ones.
        mode: see MEALV2.
        K: see MEALV2.
        final_relu: see MEALV2.
        discriminator_lr: see MEALV2.
        combine: see MEALV2.
        cutmix_prob: see MEALV2.
        cutmix_beta: see MEALV2.
    """

    def __init__(
        self,
        student: Classifier,
        teachers: list[Frozen],
        mode: Mode = "cooperative",
        K: int = 8,
        final_relu: bool = True,
        discriminator_lr: float | None = 1e-4,
        combine: Combine = "mean",
        cutmix_prob: float = 0.0,
        cutmix_beta: float = 1.0,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = Frozen(Ensemble(teachers), classes=student.classes)
        self.stored = is_stored(self.teacher)
        self.discriminator = None if mode == "off" else logits_discriminator(len(student.classes), K, final_relu)
        self.mode, self.discriminator_lr, self.combine = mode, discriminator_lr, combine
        self.cutmix_prob, self.cutmix_beta = cutmix_prob, cutmix_beta

    def teachers(self) -> dict[str, Frozen]:
        """The ensemble, ``teacher``, and each of its members; stored ones say nothing of other samples."""
        named = {"teacher": self.teacher} | {f"teacher-{number}": member for number, member in enumerate(self.members)}
        return {name: teacher for name, teacher in named.items() if not is_stored(teacher)}

    @property
    def members(self) -> list[Frozen]:
        """The teachers, one by one."""
        return [m for m in self.teacher.model.get_submodule("members").children() if isinstance(m, Frozen)]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:  # type: ignore[override]  # a list is iterable
        """The student, and the discriminator, whose learning rate is its own."""
        groups = {"main": [p for p in self.student.parameters() if p.requires_grad]}
        return groups if self.discriminator is None else {**groups, "discriminator": [*self.discriminator.parameters()]}

    def step(self, batch: Batch, engine: Engine) -> None:
        """One backward pass of the sum of both losses; student and discriminator step together."""
        discriminator = engine.optimizers.get("discriminator")
        if discriminator is None:
            engine.minimise(batch)
            return
        discriminator.zero_grad()
        engine.minimise(batch)
        for group in discriminator.param_groups if self.discriminator_lr is not None else ():
            group["lr"] = self.discriminator_lr
        discriminator.step()

    def terms(self, batch: Batch) -> Terms:
        """Soft cross-entropy, and how well the discriminator tells student from teacher."""
        images, classes = batch["image"], len(self.student.classes)
        mixed = self.cutmix_prob > 0 and float(torch.rand(())) < self.cutmix_prob
        if mixed and not self.stored:
            images = cutmix_images(images, self.cutmix_beta, torch.default_generator)
        probabilities, judged = self.label({**batch, "image": images})
        if mixed and self.stored:
            images, labels = cutmix(images, Labels(probabilities), classes, self.cutmix_beta, torch.default_generator)
            probabilities = labels.probabilities(classes)

        logits = self.student(images).logits
        terms: Terms = {"similarity": soft_cross_entropy(logits, probabilities)}
        if self.discriminator is not None:
            seen = reverse_gradient(logits) if self.mode == "adversarial" else logits
            seen = seen.softmax(dim=-1) if self.stored else seen
            of_student, of_teacher = self.discriminator(torch.cat([seen, judged.to(seen)])).chunk(2)
            terms["discriminator"] = student_teacher_discriminator(of_student, of_teacher)
        return terms

    def label(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """p_T and what D sees, z_T (p_T of stored ones), [B, C]: of all teachers, or of one drawn for the batch."""
        if self.combine == "random":
            logits: Tensor = self.members[int(torch.randint(len(self.members), ()))](batch).logits.float()
            probabilities = logits.softmax(dim=-1)
        else:
            output = self.teacher(batch)
            probabilities, logits = output.log_probabilities.exp(), output.mean_logits
        return probabilities, probabilities if self.stored else logits


class MEALV2:
    """A pretrained student learns the mean prediction of several teachers; hard labels are not used.

    Source: Shen, Savvides, "MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks",
    arXiv 2009.08453 (2020), with the losses of the released code. All see the same view; of M frozen teachers with
    logits z_m, student logits z_s and a discriminator D of two logits,

        p_T = 1/M sum_m softmax(z_m),   z_T = 1/M sum_m z_m
        L_sim = -mean_b sum_c p_T[c] log softmax(z_s)[c]
        L_D = BCE(D(z_s), [1, 0]) / 2 + BCE(D(z_T), [0, 1]) / 2     mean over the two logits
        L = L_sim + L_D.

    One backward pass; both student and D descend on L. As released it is no game: the student is pushed to be told
    from the ensemble, a regulariser in the author's reading. Whether the paper's objective is a min-max was not read.

    Differs from the released code: the discriminator's learning rate is ``discriminator_lr`` throughout (there the
    student's overwrites it in every epoch, which ``null`` repeats; that it does not follow the schedule is a choice).
    With stored labels in a committee D sees probabilities, p_T and the student's, as in the released training from
    FKD's files, and CutMix mixes p_T by area (there both losses: the same in the mean over the batch). With fewer than
    K^2 classes the hidden layers of D have at least one unit. Teachers trained here and a student
    trained on the hard labels first stand for the pretrained networks of the paper.

    Args:
        data: the images; their labels are used by ``start`` and ``squeeze`` only.
        start: the student with its own weights: a pretrained or saved network, or a method that trains one.
        committee: the teachers, each a model block such as {name: cnn, width: 32}; trained first (``squeeze``), except
            for saved and pretrained ones, and stores of labels ({name: store, folder: STORE}).
        squeeze: how teachers are trained on the hard labels.
        fit: of the distillation (paper: SGD 0.01, momentum 0.9, no weight decay, batches of 512, 180 epochs, a tenth of
            the rate from epoch 101).
        mode: the student's gradient of L_D as released (cooperative), reversed (adversarial), or no discriminator.
        K: by which the layers of D shrink.
        final_relu: a ReLU after the last layer of D, as released; L_D is then at least ln(2) / 2, and D may die.
        discriminator_lr: constant learning rate of D; null: the student's.
        combine: the mean of the teachers, or one a batch, drawn at random (the first MEAL, arXiv 1812.02425).
        cutmix_prob: share of batches that are mixed by CutMix before teachers and student see them (1 in the paper's
            variant with CutMix).
        cutmix_beta: of the Beta distribution of its share.
    """

    def __init__(
        self,
        data: ImageData,
        start: Method,
        committee: list[dict[str, Any]],
        squeeze: FitSettings,
        fit: FitSettings,
        mode: Mode = "cooperative",
        K: int = 8,
        final_relu: bool = True,
        discriminator_lr: float | None = 1e-4,
        combine: Combine = "mean",
        cutmix_prob: float = 0.0,
        cutmix_beta: float = 1.0,
    ) -> None:
        check_committee(committee)
        if K < 1:
            raise LimbeckError(f"K is {K}; it must be at least 1")
        if discriminator_lr is not None and not discriminator_lr >= 0:
            raise LimbeckError(f"discriminator_lr is {discriminator_lr}; it must be at least 0, or null")
        if not 0 <= cutmix_prob <= 1 or not cutmix_beta > 0:
            raise LimbeckError(f"cutmix_prob is {cutmix_prob}, cutmix_beta {cutmix_beta}; must be in [0, 1], above 0")
        self.data, self.start, self.committee, self.squeeze, self.fit = data, start, committee, squeeze, fit
        self.options: dict[str, Any] = {"mode": mode, "K": K, "final_relu": final_relu, "combine": combine}
        self.options |= {"discriminator_lr": discriminator_lr, "cutmix_prob": cutmix_prob, "cutmix_beta": cutmix_beta}

    def program(self) -> Program:
        """Train the teachers and the student on hard labels where they are not yet, then distil without labels."""
        networks = yield from squeeze(self.committee, self.data, self.squeeze)
        data = replay(networks, self.data)
        student = yield from self.start.program()
        if not isinstance(student, Classifier) or student.classes != data.classes:
            raise LimbeckError(f"meal-v2 starts from a classifier of the classes {list(data.classes)}")
        teachers = [Frozen(network, classes=student.classes) for network in networks]
        objective = EnsembleDistillation(student.requires_grad_(), teachers, **self.options)
        return (yield Fit("fit", objective, data, self.fit))
