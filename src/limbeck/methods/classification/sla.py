"""SLA: self-supervised label augmentation."""

import copy
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.data.samples import ImageData
from limbeck.data.stream import Stream
from limbeck.data.transformations import transform, transformations
from limbeck.errors import LimbeckError, nearest
from limbeck.labels.joint import aggregate, joint_labels
from limbeck.losses.divergence import cross_entropy, forward_kl
from limbeck.losses.reduction import Mean
from limbeck.models.classifier import Classifier
from limbeck.models.heads import num_features
from limbeck.models.joint_classifier import JointClassifier, with_joint_head
from limbeck.stages.evaluation import predict_logits, quality
from limbeck.stages.objective import Batch, Objective, Terms

MODES = ("sla+si", "sla+ag", "sla+sd", "da", "mt")


class SLA(Objective):
    """The student classifies how an image was transformed together with what it shows.

    Source: Lee, Hwang, Shin, "Self-supervised Label Augmentation via Input Transformations", arXiv 1910.05872 (ICML
    2020). With N classes, M transformations t_0 (the identity) to t_{M-1}, and one logit s_(i, j) for each pair,

        L_SLA = mean_b mean_j CE(s(t_j(x_b)), (y_b, j)).

    No invariance is asked for. The class is read off the pairs in one of two ways:

        single inference (SI)    softmax over i of s_(i, 0)(x)
        aggregation (AG)         P_AG = softmax(a),   a_i = 1/M sum_j s_(i, j)(t_j(x))

    With self-distillation (SD) a second head h on the same features answers from one view:

        L = L_SLA + mean_b CE(h(x_b), y_b) + T^2 mean_b KL(softmax(a / T) || softmax(h / T)),

    where a gets no gradient. All views go through the network together, so that the statistics of batch
    normalisation are those of all views. What is kept answers for the N classes in each mode: with SI and AG the
    student with the joint head in the place of its own, with AG making its M views itself; with SD the student
    without the joint head.

    Two baselines of the paper train the student's own head on the same views, against data augmentation (DA)
    and, with a second head v for the transformation, multi-task learning (MT); both answer from one view:

        L_DA = mean_b mean_j CE(h(t_j(x_b)), y_b),   L_MT = L_DA + mean_b mean_j CE(v(t_j(x_b)), j).

    Differs from the released code: DA and MT raise NotImplementedError there and are written from the paper's
    description; epochs take the place of batches drawn anew in each step; images are transformed before they are
    normalised, which is the same unless the channels are normalised differently. The weights of the SD terms, all 1,
    are those of the code (the paper's beta from memory).

    A step costs M forward and backward passes of plain training.

    Args:
        student: the model to train; its classification head must be known, see :class:`Classifier`.
        mode: which of the losses, and how the trained model answers.
        transformation: which transformations: rotation (M = 4), rotation2 (2), color_perm (6), color_perm3 (3),
            rot_color_perm6, rot_color_perm12, rot_color_perm24, or none (1).
        T: temperature of the self-distillation.
        with_large_loss: L_SLA is the sum over the views of an image, not their mean (ImageNet, iNaturalist).
    """

    progress: ClassVar[tuple[str, str]] = ("accuracy", "higher")

    def __init__(
        self,
        student: Classifier,
        mode: Literal["sla+si", "sla+ag", "sla+sd", "da", "mt"] = "sla+ag",
        transformation: str = "rotation",
        T: float = 1.0,
        with_large_loss: bool = False,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise LimbeckError(f"mode is {mode!r}.{nearest(mode, MODES)} It must be one of {', '.join(MODES)}")
        if not T > 0:
            raise LimbeckError(f"T is {T}; it must be above 0")
        self.views = len(transformations(transformation))
        self.mode, self.transformation, self.T, self.with_large_loss = mode, transformation, T, with_large_loss
        self.student = student
        if mode in ("sla+si", "sla+ag"):
            self.student = with_joint_head(student, transformation, aggregate=mode == "sla+ag")
        elif mode != "da":
            outputs = self.views if mode == "mt" else self.views * len(student.classes)
            self.head = nn.Linear(num_features(student, "SLA"), outputs)

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream:
        """The training samples; they are transformed with the batch."""
        transformations(self.transformation, data.train.shape)
        self._test = data.test
        return Stream(data.train, batch_size, seed, views=data.training_views, flip=data.flip)

    def terms(self, batch: Batch) -> Terms:
        """The terms of the mode, means over the labelled images."""
        views = transform(batch["image"], self.transformation)
        label, labelled = batch["label"].clamp(min=0), batch["label"] >= 0
        if isinstance(self.student, JointClassifier):
            return {"sla": self.joint_loss(self.student.joint(views).logits, label, labelled)}

        output = self.student(views)
        if self.mode in ("da", "mt"):
            found: Terms = {"ce": self.over_views(output.logits, label[:, None].expand(-1, self.views), labelled)}
            if self.mode == "mt":
                number = torch.arange(self.views, device=label.device).expand(len(label), -1)
                found["transformation"] = self.over_views(self.head(output.features), number, labelled)
            return found
        joint = self.head(output.features)
        single = output.logits[:: self.views]
        aggregated = aggregate(joint.unflatten(0, (-1, self.views))).detach()
        distilled = forward_kl(single, aggregated, temperature=self.T, reduction="none")
        return {
            "sla": self.joint_loss(joint, label, labelled),
            "ce": Mean.of(cross_entropy(single, label, reduction="none"), labelled),
            "kd": Mean.of(distilled, labelled).times(self.T**2),
        }

    def joint_loss(self, logits: Tensor, label: Tensor, labelled: Tensor) -> Mean:
        """L_SLA of joint logits [B M, N M], with the classes [B] and which of them are known."""
        loss = self.over_views(logits, joint_labels(label, self.views), labelled)
        return loss.times(self.views) if self.with_large_loss else loss

    def over_views(self, logits: Tensor, labels: Tensor, labelled: Tensor) -> Mean:
        """Cross-entropy of logits [B M, .] against the labels [B, M] of the views, mean over views and images."""
        losses = cross_entropy(logits.unflatten(0, (-1, self.views)), labels, reduction="none")
        return Mean.of(losses.mean(-1), labelled)

    def summary(self) -> dict[str, float]:
        """Test accuracy by the other way of reading the pairs: ``single/accuracy`` or ``aggregated/accuracy``."""
        if not isinstance(self.student, JointClassifier):
            return {}
        other = copy.deepcopy(self.student)
        other.aggregate = not other.aggregate
        accuracy = quality(predict_logits(other, self._test))["accuracy"]
        return {"aggregated/accuracy" if other.aggregate else "single/accuracy": accuracy}
