"""DHO: dual-head optimization."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.data.samples import ImageData, Samples
from limbeck.data.semi_supervised import Batches, labeled_beside_unlabeled
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.types import Labels
from limbeck.losses.divergence import cross_entropy, forward_kl
from limbeck.losses.reduction import Mean
from limbeck.metrics.interpolation import search_interpolation
from limbeck.metrics.pseudo_labels import precision
from limbeck.models.classifier import Classifier
from limbeck.models.dual_head import DualHead, with_dual_head
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.score import Table, score
from limbeck.teachers.frozen import Frozen


class DHO(Objective):
    """Few labels teach one head, a vision-language model another one; both shape the features and answer together.

    Source: Kang, Lee, Jang, Hwang, "Simple (yet Effective) Semi-supervised Knowledge Distillation from Vision-Language
    Models via Dual-Head Optimization", arXiv 2505.07675 (2025), equations as of the released code. With features v,
    heads h_ce and h_kd, a frozen teacher's logits t (CLIP zero-shot: :func:`limbeck.models.clip.clip`; with a cache of
    labelled images: the method tip-adapter) and as many labelled images l as unlabelled ones u in a batch, which all go
    through the network in one pass,

        L_CE = mean_l CE(y, h_ce(v)),   L_KD^s = T^2 mean_s KL(softmax(t / T) || softmax(h_kd(v) / T)),   s = l, u
        L = lambda_ce L_CE + lambda_kd (L_KD^l + L_KD^u)
        p = alpha softmax(h_ce(v)) + (1 - alpha) softmax(h_kd(v) / beta).

    Teacher and student see the same view. alpha of {0, 0.05, ..., 1} and beta of {0.5, 0.75, 1, 1.25, 1.5, 2, 4} are
    chosen by the accuracy on the validation data whenever that is measured (of equally good pairs the smaller beta,
    then the smaller alpha), and saved with the weights they were chosen for; ``fit.select: best`` keeps the best
    evaluation with its pair, as the few-shot code does after every epoch. The student's logits are log p. A linear
    classification head becomes h_ce, and h_kd is drawn; where the student is CLIP both start from its text embeddings,
    h_ce on v as it is, h_kd as 100 (W v / |v| + b) (:func:`limbeck.models.dual_head.with_dual_head`; the paper, as
    summarised, takes the teacher's text embeddings).

    ``heads="single"`` is the baseline with one head for both losses (W_ce = W_kd). ``gradient_cosine`` is logged: the
    mean cosine between the gradients of L_CE and L_KD^l with respect to the features of an image, where both enter the
    backbone.

    Differs from the released code: an epoch is a pass over the unlabelled images (its few-shot code ends with the
    shorter loader), labelled and unlabelled images share the statistics of batch normalisation (its few-shot code has a
    pass for each), and nothing is chosen on test data (its few-shot ImageNet code does that).

    Args:
        student: the model to train.
        teacher: a frozen model; its classes are matched to the student's by name.
        lambda_ce: weight of the labels (0.5 in the few-shot code, 1 for 1% and 10% of ImageNet).
        lambda_kd: weight of the teacher, on labelled and on unlabelled images (0.5; 1).
        T: temperature of the distillation.
        alpha: weight of h_ce in the answer; null: chosen (ImageNet: 0.5).
        beta: temperature of h_kd in the answer; null: chosen (ImageNet: 0.5).
        heads: two heads, or one for both losses, where alpha and beta mean nothing.
    """

    student: Classifier
    progress: ClassVar[tuple[str, str]] = ("accuracy", "higher")

    def __init__(
        self,
        student: Classifier,
        teacher: Frozen,
        lambda_ce: float = 0.5,
        lambda_kd: float = 0.5,
        T: float = 2.0,
        alpha: float | None = None,
        beta: float | None = None,
        heads: Literal["dual", "single"] = "dual",
    ) -> None:
        super().__init__()
        if not T > 0 or not (beta is None or beta > 0):
            raise LimbeckError(f"T is {T} and beta {beta}; temperatures must be above 0")
        if not (alpha is None or 0 <= alpha <= 1):
            raise LimbeckError(f"alpha is {alpha}; it must lie between 0 and 1, or be null")
        if not (lambda_ce >= 0 and lambda_kd >= 0 and lambda_ce + lambda_kd > 0):
            raise LimbeckError(f"lambda_ce is {lambda_ce} and lambda_kd {lambda_kd}; at least 0, and not both 0")
        self.teacher = teacher
        self.lambda_ce, self.lambda_kd, self.T = lambda_ce, lambda_kd, T
        self.alphas, self.betas = (None if value is None else (value,) for value in (alpha, beta))
        self.student = with_dual_head(student) if heads == "dual" else student
        if heads == "dual":
            self.head.set_interpolation(0.5 if alpha is None else alpha, 1.0 if beta is None else beta)
        self.dual = heads == "dual"
        self.changed = False

    @property
    def head(self) -> DualHead:
        """Both heads."""
        assert self.student.head is not None
        head = self.student.body.get_submodule(self.student.head)
        assert isinstance(head, DualHead)
        return head

    def streams(self, data: ImageData, batch_size: int, seed: int) -> dict[str, Stream]:
        """As many labelled images as unlabelled ones a batch, in the training view."""
        self._data = data
        return labeled_beside_unlabeled(data, batch_size, seed)

    def terms(self, batch: Batches) -> Terms:
        """The three terms of the loss."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        soft = [self.teacher(part).logits for part in (labeled, unlabeled)]
        output = self.student({"image": torch.cat([labeled["image"], unlabeled["image"]])})
        ce, kd = self.head.heads(output.features) if self.dual else (output.logits, output.logits)

        count = len(labeled["label"])
        known = labeled["label"] >= 0
        hard = cross_entropy(ce[:count], labeled["label"], weight=known, reduction="none")
        of_labeled, of_unlabeled = (
            forward_kl(logits, target, temperature=self.T, reduction="none")
            for logits, target in zip((kd[:count], kd[count:]), soft, strict=True)
        )
        self.watch(output.features, hard, of_labeled, known, unlabeled, soft[1])
        weight = self.lambda_kd * self.T**2
        return {
            "ce": Mean.of(hard, known).times(self.lambda_ce),
            "kd/labeled": Mean.of(of_labeled).times(weight),
            "kd/unlabeled": Mean.of(of_unlabeled).times(weight),
        }

    def watch(
        self, features: Tensor, hard: Tensor, soft: Tensor, known: Tensor, unlabeled: Batch, teacher: Tensor
    ) -> None:
        """Log whether both losses pull the features the same way, and how often the teacher is right."""
        if features.requires_grad:
            of_labels, of_teacher = (
                torch.autograd.grad(loss.sum(), features, retain_graph=True)[0][: len(known)].float()
                for loss in (hard, soft)
            )
            cosines = nn.functional.cosine_similarity(of_labels, of_teacher, dim=-1)
            self.observe(gradient_cosine=Mean.of(cosines, known))
        if "hidden_label" in unlabeled:
            self.observe(precision=precision(Labels(teacher.float().softmax(-1)), unlabeled["hidden_label"]))

    def after_update(self, batch: Batch) -> None:
        """The pair was chosen for other weights."""
        self.changed = True

    def trained(self) -> Classifier:
        """The student, with a pair that was chosen for the weights it has: whoever asks measures or keeps it."""
        if self.changed and self.dual and None in (self.alphas, self.betas):
            self.calibrate(self._data.validation)
        self.changed = False
        return self.student

    def calibrate(self, samples: Samples) -> None:
        """Choose alpha and beta, as far as they are not given, by the accuracy on ``samples``."""
        said = self.both(samples)
        grid = {"alphas": self.alphas, "betas": self.betas}
        chosen = search_interpolation(
            said["ce"], said["kd"], samples.labels, **{name: value for name, value in grid.items() if value is not None}
        )
        self.head.set_interpolation(chosen.alpha, chosen.beta)

    def both(self, samples: Samples) -> Table:
        """Logits of both heads, ``ce`` and ``kd``, of every sample as it is."""
        return score(_Both(self.student, self.head), samples)

    def summary(self) -> dict[str, float]:
        """The pair that was chosen, and the test accuracy of each head alone."""
        if not self.dual:
            return {}
        test = self._data.test
        right = {name: logits.argmax(-1) == test.labels for name, logits in self.both(test).items()}
        alone = {f"{name}_head/accuracy": float(hits.double().mean()) for name, hits in right.items()}
        return {"alpha": float(self.head.alpha), "beta": float(self.head.beta), **alone}


class _Both(nn.Module):
    """Batch -> logits of both heads."""

    def __init__(self, student: Classifier, head: DualHead) -> None:
        super().__init__()
        self.student, self.head = student, head

    def forward(self, batch: Batch) -> Table:
        """Columns ``ce`` and ``kd``, [B, C]."""
        return dict(zip(("ce", "kd"), self.head.heads(self.student({"image": batch["image"]}).features), strict=True))
