"""FixMatch: consistency and confidence."""

from typing import Literal

import torch
from torch import Tensor

from limbeck.data.samples import ImageData
from limbeck.data.semi_supervised import Batches, labeled_and_unlabeled
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.refine import align_distribution
from limbeck.labels.select import confident
from limbeck.labels.types import Labels
from limbeck.losses.divergence import cross_entropy, soft_cross_entropy
from limbeck.losses.reduction import Mean
from limbeck.metrics.pseudo_labels import coverage, precision
from limbeck.models.classifier import Classifier, ClassifierOutput
from limbeck.models.joint import joint_forward
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.teachers.ema import EMA
from limbeck.teachers.running_means import BatchMeans, MovingMean


class FixMatch(Objective):
    """The student labels unlabelled images in a weak view; where it is certain, it learns that from a strong view.

    Source: Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence",
    arXiv 2001.07685 (NeurIPS 2020), equations 3 and 4. With B labelled samples x_b, mu B unlabelled ones u_b,
    their weak view w and strong view s, and p_b = softmax(z(w(u_b))) without gradient:

        L = 1/B sum_b CE(y_b, z(w(x_b))) + lambda_u 1/(mu B) sum_b 1[max p_b >= tau] CE(argmax p_b, z(s(u_b))).

    The second mean is over all unlabelled samples, those below the threshold count as 0. All views go through the
    network in one pass. ``target="soft"`` takes p_b itself as target; with ``alignment`` p_b is first divided by
    the marginal of the predictions of the last batches, the present one included, and renormalised
    (distribution alignment, section 2.5 and arXiv 1911.09785). Both are off in FixMatch and on in the FixMatch that
    ShrinkMatch builds on. The average of the student's weights is measured and kept.

    Differs from the released code: the strong view follows table 12 of the paper, see
    :mod:`limbeck.data.rand_augment`; 1e-6 is added to both sides of the alignment's quotient; weight decay on
    biases and norms is a setting of the fit (``decay_biases``), and the learning rate's ``quarter_cosine`` too.

    Args:
        student: the model to train.
        tau: the smallest confidence of a label that is used.
        mu: unlabelled samples for each labelled one; ``fit.batch_size`` counts the labelled.
        lambda_u: weight of the unlabelled samples.
        target: the arg max of the prediction, or the prediction itself.
        alignment: batches over which distribution alignment takes the marginal; 0 for none.
        ema_decay: share of the average of the weights that an update leaves.
    """

    student: Classifier

    def __init__(
        self,
        student: Classifier,
        tau: float = 0.95,
        mu: int = 7,
        lambda_u: float = 1.0,
        target: Literal["hard", "soft"] = "hard",
        alignment: int = 0,
        ema_decay: float = 0.999,
    ) -> None:
        super().__init__()
        if not 0 <= tau <= 1:
            raise LimbeckError(f"tau is {tau}; it must lie between 0 and 1")
        if mu < 1:
            raise LimbeckError(f"mu is {mu}; it must be at least 1, one unlabelled sample for each labelled one")
        if not lambda_u >= 0:
            raise LimbeckError(f"lambda_u is {lambda_u}; it must be at least 0")
        if alignment < 0:
            raise LimbeckError(f"alignment is {alignment}; it is a number of batches, 0 for no alignment")
        self.student = student
        self.average = EMA(student, decay=ema_decay, warmup=False)
        self.marginal = BatchMeans(alignment, len(student.classes)) if alignment else None
        self.shares = MovingMean(None, (2,))
        self.tau = tau
        self.mu = mu
        self.lambda_u = lambda_u
        self.target = target

    def trained(self) -> Classifier:
        """The average of the student's weights."""
        model = self.average.model
        assert isinstance(model, Classifier)
        return model

    def streams(self, data: ImageData, batch_size: int, seed: int) -> dict[str, Stream]:
        """Labelled samples, and all samples without labels in a weak and a strong view."""
        views = {"weak": "weak", "strong": "strong"}
        return labeled_and_unlabeled(data, batch_size, seed, ratio=self.mu, views=views)

    def terms(self, batch: Batches) -> Terms:
        """The two terms of the equation."""
        labeled, weak, strong = self.predict(batch)
        certain = confident(self.pseudo_labels(weak), self.tau)
        self.watch(batch, certain, used=certain.weights)
        return self.matching(batch, labeled, strong, certain)

    def predict(self, batch: Batches) -> list[ClassifierOutput]:
        """What the student says of the labelled samples, and of the weak and of the strong view of the others."""
        unlabeled = batch["unlabeled"]
        return joint_forward(self.student, batch["labeled"]["image"], unlabeled["weak"], unlabeled["strong"])

    def pseudo_labels(self, weak: ClassifierOutput) -> Labels:
        """The prediction for each unlabelled sample, aligned where that is asked for."""
        probabilities = weak.logits.detach().softmax(-1, dtype=torch.float32)
        if self.marginal is not None:
            self.keep(probabilities=probabilities)
            probabilities = align_distribution(probabilities, self.marginal(probabilities))
        return Labels(probabilities)

    def matching(self, batch: Batches, labeled: ClassifierOutput, strong: ClassifierOutput, certain: Labels) -> Terms:
        """Cross-entropy of the labelled samples, and of the unlabelled ones that are certain."""
        if self.target == "hard":
            losses = cross_entropy(strong.logits, certain.predicted(), weight=certain.weights, reduction="none")
        else:
            losses = soft_cross_entropy(strong.logits, certain.target, weight=certain.weights, reduction="none")
        return {
            "ce": cross_entropy(labeled.logits, batch["labeled"]["label"]),
            "certain": losses.sum() * (self.lambda_u / len(losses)),
        }

    def watch(self, batch: Batches, certain: Labels, used: Tensor) -> None:
        """Log how many pseudo labels are certain, how many of those right, and how many samples teach at all."""
        self.keep(shares=torch.stack([certain.weights, used], dim=1))
        self.observe(coverage=lambda: coverage(certain), used=lambda: Mean.of(used))
        if "hidden_label" in batch["unlabeled"]:
            self.observe(precision=lambda: precision(certain, batch["unlabeled"]["hidden_label"]))

    def after_update(self, batch: Batch) -> None:
        """Move the average of the weights, the marginal and the shares."""
        self.average.update(self.student)
        self.shares.update(batch["shares"])
        if self.marginal is not None:
            self.marginal.update(batch["probabilities"])

    def summary(self) -> dict[str, float]:
        """Shares of the unlabelled samples over all of training: certain ones, and those that gave a loss."""
        return dict(zip(("coverage", "used"), self.shares.average.tolist(), strict=True))
