"""Logit adjustment, which is balanced softmax: the baseline of long tails."""

from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy
from limbeck.losses.logit_adjustment import adjust_logits
from limbeck.losses.reduction import Mean
from limbeck.models.classifier import Classifier
from limbeck.stages.objective import Batch, Objective, Plan, Terms


class LogitAdjustment(Objective):
    """Cross-entropy in which every logit has the log share of its class added.

    Source: Menon et al., "Long-tail learning via logit adjustment", arXiv 2007.07314 (ICLR 2021), equation 10. With
    n_c training samples of class c,

        L = - mean_i log softmax(z_i + tau log n)[y_i];

    at test time the bare z decides. tau = 1 is the balanced softmax of Ren et al., arXiv 2007.10740 (NeurIPS 2020);
    tau = 0, or equal classes, is cross-entropy.

    Args:
        student: the model to train.
        tau: how much of the prior the loss takes over from the logits.
    """

    class_counts: Tensor

    def __init__(self, student: Classifier, tau: float = 1.0) -> None:
        super().__init__()
        if not tau >= 0:
            raise LimbeckError(f"tau is {tau}; it must be at least 0")
        self.student = student
        self.tau = tau

    def begin(self, plan: Plan) -> None:
        """Learn how many samples each class has."""
        self.register_buffer("class_counts", plan.class_sizes(), persistent=False)

    def terms(self, batch: Batch) -> Terms:
        """Mean adjusted cross-entropy over the samples that have a label."""
        logits = adjust_logits(self.student(batch).logits, self.class_counts, self.tau)
        labelled = batch["label"] >= 0
        losses = cross_entropy(logits, batch["label"], weight=labelled, reduction="none")
        return {"ce": Mean.of(losses, labelled)}
