"""Supervised training: the baseline of everything."""

from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy
from limbeck.losses.reduction import Mean
from limbeck.models.classifier import Classifier
from limbeck.stages.objective import Batch, Objective, Terms


class Supervised(Objective):
    """Cross-entropy on true labels, with label smoothing.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567
    (2015), section 7: q = (1 - epsilon) onehot(y) + epsilon / C, L = -sum_c q_c log softmax(z)_c.

    Args:
        student: the model to train.
        label_smoothing: epsilon, the share of the label that is spread evenly over all classes.
    """

    def __init__(self, student: Classifier, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise LimbeckError(f"label_smoothing is {label_smoothing}; it must lie between 0 and 1")
        self.student = student
        self.label_smoothing = label_smoothing

    def terms(self, batch: Batch) -> Terms:
        """Mean cross-entropy over the samples that have a label."""
        logits = self.student(batch).logits
        labelled = batch["label"] >= 0
        labels = batch["label"].clamp(min=0)
        losses = cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="none")
        return {"ce": Mean.of(losses, labelled)}
