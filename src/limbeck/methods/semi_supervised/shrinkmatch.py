"""ShrinkMatch: shrinking the class space of uncertain samples."""

from typing import Literal

from limbeck.data.semi_supervised import Batches
from limbeck.errors import LimbeckError
from limbeck.labels.select import confidence, confident
from limbeck.labels.shrink import shrink_classes
from limbeck.losses.divergence import cross_entropy
from limbeck.methods.semi_supervised.fixmatch import FixMatch
from limbeck.metrics.pseudo_labels import precision
from limbeck.models.classifier import Classifier
from limbeck.models.heads import mlp_head, num_features
from limbeck.stages.objective import Batch, Terms
from limbeck.teachers.running_means import MovingMean


class ShrinkMatch(FixMatch):
    """FixMatch that also learns from uncertain samples, among fewer classes, where their first class is certain.

    Source: Yang, Zhao, Qi, Qiao, Shi, Zhao, "Shrinking Class Space for Enhanced Certainty in Semi-Supervised
    Learning", arXiv 2308.06777 (ICCV 2023); equations read off the released code and from memory of the paper.
    To the two terms of :class:`FixMatch` comes, with an auxiliary head h on the features f of the strong view,

        L_s = 1/(mu B) sum_b 1[max p_b < tau] max(p_b) l_b,   l_b = CE over S_b (argmax p_b, h(f(s(u_b)))),

    where S_b is what :func:`limbeck.labels.shrink_classes` leaves of the classes: the first one and, without the
    2nd to the c-th, the rest, for the smallest c that makes the first certain; l_b = 0 where there is none.
    max(p_b) in the full class space is the paper's first weight, the ratio r of certain samples, a moving average
    that begins with the first batch, its second:

        L = L_x + lambda_u (L_u + r L_s),   r <- d r + (1 - d) mean_b 1[max p_b >= tau].

    The head has two hidden layers of a quarter of the features; its gradient reaches the backbone, and the finished
    model does not have it. Where all are certain L_s = 0, and this is FixMatch with soft targets and alignment.
    For two classes no space can be shrunk.

    Differs from the released code: r goes on over the whole training (its CIFAR loop begins anew every 1024 updates,
    see ``ratio_restart``), and classes are ordered by the aligned predictions (its STL and SVHN code orders by the raw
    ones but takes mask and weight from the aligned). Its ImageNet variant, which adds SimMatch's instance similarities
    (arXiv 2203.06915), is not here.

    Args:
        student: the model to train; its classification head must be known, see :class:`Classifier`.
        tau: the smallest confidence of a label that is certain, among all classes or among those that are left.
        mu: unlabelled samples for each labelled one; ``fit.batch_size`` counts the labelled.
        lambda_u: weight of the unlabelled samples.
        target: of certain samples: the prediction itself (CIFAR), or its arg max (STL, SVHN).
        alignment: batches over which distribution alignment takes the marginal; 0 for none (SVHN).
        ema_decay: share of the average of the weights that an update leaves.
        ratio_decay: d, share of the average ratio of certain samples that an update leaves.
        ratio_restart: updates after which r begins anew with the batch at hand; None for never.
    """

    def __init__(
        self,
        student: Classifier,
        tau: float = 0.95,
        mu: int = 7,
        lambda_u: float = 1.0,
        target: Literal["hard", "soft"] = "soft",
        alignment: int = 32,
        ema_decay: float = 0.999,
        ratio_decay: float = 0.999,
        ratio_restart: int | None = None,
    ) -> None:
        super().__init__(student, tau, mu, lambda_u, target, alignment, ema_decay)
        if not 0 <= ratio_decay <= 1:
            raise LimbeckError(f"ratio_decay is {ratio_decay}; it must lie between 0 and 1")
        if ratio_restart is not None and ratio_restart < 1:
            raise LimbeckError(f"ratio_restart is {ratio_restart}; it is a number of updates, at least 1")
        inputs = num_features(student, "ShrinkMatch")
        self.auxiliary = mlp_head(inputs, len(student.classes), hidden=max(1, inputs // 4), slope=0.1)
        self.certain_ratio = MovingMean(ratio_decay, restart=ratio_restart)

    def terms(self, batch: Batches) -> Terms:
        """FixMatch's terms, and that of the uncertain samples among fewer classes."""
        labeled, weak, strong = self.predict(batch)
        pseudo = self.pseudo_labels(weak)
        certain = confident(pseudo, self.tau)
        shrunk = shrink_classes(pseudo.weighted(certain.weights.logical_not()), self.tau)
        ratio = self.certain_ratio(certain.weights)

        self.watch(batch, certain, used=certain.weights + ratio.sign() * shrunk.weights)
        self.observe(certain_ratio=lambda: ratio)
        if "hidden_label" in batch["unlabeled"]:
            self.observe(**{"shrunk/precision": lambda: precision(shrunk, batch["unlabeled"]["hidden_label"])})

        weight = shrunk.weights * confidence(pseudo)
        logits = self.auxiliary(strong.features)
        losses = cross_entropy(logits, shrunk.predicted(), classes=shrunk.classes, weight=weight, reduction="none")
        return {
            **self.matching(batch, labeled, strong, certain),
            "shrunk": losses.sum() * (self.lambda_u / len(losses) * ratio),
        }

    def after_update(self, batch: Batch) -> None:
        """Move the ratio of certain samples too."""
        super().after_update(batch)
        self.certain_ratio.update(batch["shares"][:, 0])
