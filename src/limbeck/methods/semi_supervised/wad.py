"""WAD: weight-aware distillation."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from limbeck.data.samples import ImageData, Samples, concat
from limbeck.data.semi_supervised import Batches, labeled_beside_unlabeled
from limbeck.data.stream import Stream, eval_batches
from limbeck.errors import LimbeckError
from limbeck.labels.nearest_labelled import class_similarity, nearest_class
from limbeck.labels.query import largest
from limbeck.labels.types import Labels
from limbeck.losses.divergence import cross_entropy
from limbeck.losses.reduction import Mean
from limbeck.methods.semi_supervised.contrastive import Contrastive, check_contrastive
from limbeck.metrics.pseudo_labels import coverage, precision
from limbeck.metrics.ranking import auc
from limbeck.models.classifier import Classifier
from limbeck.models.heads import num_features
from limbeck.models.joint import joint_forward
from limbeck.models.projector import project_contrastively
from limbeck.models.whitened import with_whitening
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Objective, Terms
from limbeck.stages.score import Score
from limbeck.stages.scorers import Embeddings, Losses
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program


class WeightedPseudoLabels(Objective):
    """Cross-entropy of labelled images, and of unlabelled ones with the labels they were given, by their weights.

    Args:
        student: the model to train.
        samples: the unlabelled images with their pseudo labels.
        weights: of these, [N].
        facts: what is known of them, for the result.
    """

    student: Classifier
    weights: Tensor

    def __init__(self, student: Classifier, samples: Samples, weights: Tensor, facts: Mapping[str, float]) -> None:
        super().__init__()
        self.student, self.facts = student, dict(facts)
        table = torch.zeros(samples.num_samples).index_copy(0, samples.indices, weights.float())
        self.register_buffer("weights", table, persistent=False)

    def streams(self, data: ImageData, batch_size: int, seed: int) -> dict[str, Stream]:
        """As many labelled images as unlabelled ones a batch."""
        return labeled_beside_unlabeled(data, batch_size, seed)

    def terms(self, batch: Batches) -> Terms:
        """The two terms; both are means over their half of the batch."""
        known, other = batch["labeled"], batch["unlabeled"]
        pseudo = Labels(other["label"], self.weights.index_select(0, other["index"]))
        self.observe(coverage=coverage(pseudo))
        if "hidden_label" in other:
            self.observe(precision=precision(pseudo, other["hidden_label"]))

        labeled, unlabeled = joint_forward(self.student, known["image"], other["image"])
        losses = cross_entropy(unlabeled.logits, other["label"], weight=pseudo.weights, reduction="none")
        return {"ce": cross_entropy(labeled.logits, known["label"]), "pseudo": Mean.of(losses)}

    def summary(self) -> dict[str, float]:
        """What is known of the pseudo labels."""
        return self.facts


class WAD:
    """Unlabelled images of unknown classes teach little: they are near to no class, or to two classes alike.

    Source: Du, Zhao, Sheng, Li, Chen, "Semi-Supervised Learning via Weight-aware Distillation under Class Distribution
    Mismatch", arXiv 2308.11874 (ICCV 2023), read off the released code; of the paper the abstract. A teacher learns
    features z by NT-Xent on all images, without labels. Then in rounds i = 1 .. S + 1, for each unlabelled u,

        s_k(u) = max over the labelled x of class k of cos(z(u), z(x)),
        yhat(u) = argmax_k s_k(u),      w(u) = s_(1) (1 - s_(2) / s_(1)) = s_(1) - s_(2),

    a weight that the paper derives from point mutual information, and the student, as the last round left it, minimises

        L = mean_l CE(f(x_l), y_l) + mean_u w(u) CE(f(x_u), yhat(u)).

    Of the unlabelled images the floor(alpha_i |U|) with the smallest CE(f(x_u), yhat(u)) join the labelled ones for
    good, alpha_i = alpha (1 - i / S)^2: none after the rounds S and S + 1. The optimiser begins anew in each round.

    Where the truth is known the result holds ``weight_auroc``, how well weights tell known from unknown classes (0.5 is
    chance; means ``known_weight``, ``unknown_weight``), and ``reliable_purity`` and ``pool_purity``: the share of right
    labels among all that joined and among all pseudo labels, where images of unknown classes count as wrong.

    Differs from the released code: whitening has the statistics of the training images throughout (there the test
    images have their own) and follows augmentation, which is ``data.view``; SimCLR's order of augmentations. Both
    halves of a batch share the statistics of batch normalisation (a choice). With few labels and random views its
    scores are noisy: ``feature_views`` 0 takes the images as they are, a larger number the mean over views.

    Args:
        data: few labelled images, and unlabelled ones that need not be of their classes.
        student: a classifier of the labelled classes (code: WRN-28-2).
        encoder: the network of the teacher (code: ResNet-18); its head has one hidden layer.
        pretraining: of the teacher (code: SGD 0.1, momentum 0.9, weight decay 1e-6, 10 epochs of warm-up, cosine,
            batches of 32, 700 epochs on CIFAR-10); without ``accumulate``.
        fit: of the student in each round (code: Adam 5e-4, 1,500 updates of 32 labelled and as many unlabelled images).
        alpha: share of the unlabelled images that would join before the first round, 0 to 1.
        rounds: S.
        power: of the decay of alpha.
        weights: the margin, or 1 for every image (what it is compared with).
        pretraining_temperature: of NT-Xent.
        view: of the teacher's training, and of ``feature_views``.
        outputs: of the teacher's projection head, on which similarity is measured.
        feature_views: random views of an image in each round (code: 1); 0 for the image itself.
        preprocessing: of the student's images: :class:`limbeck.models.whitened.Whitening`, or channel by channel.
    """

    def __init__(
        self,
        data: ImageData,
        student: Classifier,
        encoder: Classifier,
        pretraining: FitSettings,
        fit: FitSettings,
        alpha: float = 0.1,
        rounds: int = 5,
        power: float = 2.0,
        weights: Literal["margin", "one"] = "margin",
        pretraining_temperature: float = 0.5,
        view: str = "simclr_cifar",
        outputs: int = 128,
        feature_views: int = 1,
        preprocessing: Literal["gcn_zca", "channels"] = "gcn_zca",
    ) -> None:
        check_contrastive(pretraining, "pretraining", view, pretraining_temperature)
        if data.unlabeled is None or len(data.classes) < 2:
            raise LimbeckError("WAD needs unlabelled images and at least two classes: see data class_mismatch")
        if not 0 <= alpha <= 1 or rounds < 1 or not power > 0 or feature_views < 0:
            raise LimbeckError(
                f"alpha is {alpha}, rounds {rounds}, power {power} and feature_views {feature_views}; they must be "
                "between 0 and 1, at least 1, above 0 and at least 0"
            )
        self.data, self.student, self.pretraining, self.fit = data, student, pretraining, fit
        self.everyone, self.truth = concat([data.train, data.unlabeled]), data.unlabeled.hidden_labels is not None
        self.alpha, self.rounds, self.power, self.weights = alpha, rounds, power, weights
        num_features(encoder, "WAD's teacher")
        self.encoder, self.outputs, self.temperature = encoder, outputs, pretraining_temperature
        self.view, self.feature_views, self.preprocessing = view, feature_views, preprocessing

    def program(self) -> Program:
        """Train the teacher; in every round label, weigh, train, and let the most reliable images join."""
        teacher = project_contrastively(self.encoder, self.data.task, layers=2, outputs=self.outputs, batch_norm=False)
        contrastive = Contrastive(teacher, self.temperature, self.view)
        teacher = yield Fit("contrast", contrastive, self.data, self.pretraining)
        labels, student, joined = self.everyone.labels.clone(), self.student, torch.zeros(0, dtype=torch.int64)
        if self.preprocessing == "gcn_zca":
            student = with_whitening(student, (part["image"] for part in eval_batches(self.everyone, 1024)))
        for number in range(1, self.rounds + 2):
            if number == 1 or self.feature_views:
                seed = int(torch.randint(2**62, ()))
                embedder = Embeddings(teacher, self.feature_views, self.view, seed, self.data.flip)
                z = (yield Score(f"features-{number}", embedder, self.everyone, self.fit))["embedding"]
            known, left = ((labels >= 0) == which for which in (True, False))
            pseudo = nearest_class(class_similarity(z[left], z[known], labels[known], len(self.data.classes)))
            weights = pseudo.weights if self.weights == "margin" else torch.ones_like(pseudo.weights)
            pool = self.everyone.subset(left.nonzero()[:, 0]).relabel(pseudo.predicted())
            train = self.everyone.subset(known.nonzero()[:, 0]).relabel(labels[known])

            facts = self.facts(pool, pseudo.weights, labels, joined)
            objective = WeightedPseudoLabels(student, pool, weights, facts)
            data = dataclasses.replace(self.data, train=train, unlabeled=pool)
            student = yield Fit(f"round-{number}", objective, data, self.fit)
            count = self.joining(number, len(pool))
            if count:
                losses = (yield Score(f"losses-{number}", Losses(student), pool, self.fit))["loss"]
                surest = largest(-losses, count)
                joined = torch.cat([joined, left.nonzero()[:, 0][surest]])
                labels[joined[-count:]] = pseudo.predicted()[surest]
        return student

    def joining(self, number: int, size: int) -> int:
        """How many of ``size`` unlabelled images join after round ``number``, from 1."""
        share = self.alpha * (1 - min(number, self.rounds) / self.rounds) ** self.power
        return int(share * size + 1e-9)  # 0.1 (1 - 4 / 5)^2 1000 is 3.9999999999999982

    def facts(self, pool: Samples, weights: Tensor, labels: Tensor, joined: Tensor) -> dict[str, float]:
        """What the hidden truth says of a round's pseudo labels, and of those that have joined so far."""
        found = {"unlabeled": float(len(pool))}
        if not self.truth or pool.hidden_labels is None or self.everyone.hidden_labels is None:
            return found
        of_task = pool.hidden_labels >= 0
        found["pool_purity"] = float((pool.labels == pool.hidden_labels).double().mean())
        if of_task.any() and not of_task.all():
            found["weight_auroc"], found["chance_auroc"] = auc(weights, of_task), 0.5
            found["known_weight"] = float(weights[of_task].mean())
            found["unknown_weight"] = float(weights[~of_task].mean())
        if len(joined):
            found["reliable_purity"] = float((labels[joined] == self.everyone.hidden_labels[joined]).double().mean())
        return found
