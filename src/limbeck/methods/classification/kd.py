"""Knowledge distillation."""

from typing import Literal

from torch import Tensor

from limbeck.data.samples import ImageData, concat
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy, forward_kl
from limbeck.losses.reduction import Mean
from limbeck.models.classifier import Classifier
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.teachers.frozen import Frozen


class KD(Objective):
    """A small student learns from true labels and from the softened outputs of a frozen teacher.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531 (2015),
    section 2, with the weights of the field's usual recipe (arXiv 1910.10699, appendix):

        L = (1 - alpha) CE(y, z_s) + alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T)).

    The paper writes a cross-entropy with the soft targets; its gradient is that of the KL. T^2 keeps the size
    of the soft gradient when T changes (section 2). The teacher sees the same view as the student and is in
    eval mode. Section 2 allows a transfer set without labels: ``transfer_set="all"`` distils on the
    unlabelled samples too, where only the second term applies; each term is the mean over its own samples.

    Args:
        student: the model to train.
        teacher: a trained model; its classes are matched to the student's by name.
        alpha: weight of the distillation term (a choice of the field, 0.9; the paper names none).
        temperature: T > 0, softens both distributions.
        transfer_set: distil on the labelled training samples, or on all, the unlabelled ones included.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Frozen,
        alpha: float = 0.9,
        temperature: float = 4.0,
        transfer_set: Literal["labeled", "all"] = "labeled",
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise LimbeckError(f"alpha is {alpha}; it must lie between 0 and 1")
        if not temperature > 0:
            raise LimbeckError(f"temperature is {temperature}; it must be above 0")
        self.student = student
        self.teacher = teacher
        self.alpha = alpha
        self.temperature = temperature
        self.transfer_set = transfer_set

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream:
        """The training samples, with the unlabelled ones where the transfer set is all."""
        samples = data.train
        if self.transfer_set == "all" and data.unlabeled is not None:
            samples = concat([data.train, data.unlabeled])
        return Stream(samples, batch_size, seed, views={"image": data.view}, flip=data.flip)

    def terms(self, batch: Batch) -> Terms:
        """The hard and the soft term of the equation."""
        teacher_logits = self.teacher(batch).logits
        logits = self.student(batch).logits

        soft = forward_kl(logits, teacher_logits, temperature=self.temperature)
        return {
            "ce": self._hard(logits, batch["label"]),
            "kd": self.alpha * self.temperature**2 * soft,
        }

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor | Mean:
        if self.transfer_set == "labeled":
            return (1 - self.alpha) * cross_entropy(logits, labels)
        labelled = labels >= 0
        hard = cross_entropy(logits, labels, weight=labelled, reduction="none")
        return Mean.of(hard, labelled).times(1 - self.alpha)
