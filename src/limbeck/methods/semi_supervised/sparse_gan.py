"""SPARSE: few labels, and images translated from class to class."""

from typing import ClassVar

import torch
from torch import nn

from limbeck.data.samples import ImageData
from limbeck.data.semi_supervised import Batches, labeled_beside_unlabeled
from limbeck.data.stream import Stream
from limbeck.data.turn_stream import TurnStream
from limbeck.errors import LimbeckError
from limbeck.labels.mix import mixup
from limbeck.labels.select import confidence, confident
from limbeck.labels.thresholds import quantile_threshold
from limbeck.labels.types import Labels
from limbeck.losses.divergence import cross_entropy, soft_cross_entropy
from limbeck.losses.entropy import entropy
from limbeck.losses.mutual import peer_divergence
from limbeck.losses.one_versus_rest import one_versus_rest
from limbeck.losses.prototype import prototype_cross_entropy
from limbeck.methods.semi_supervised.translation_game import TranslationGame
from limbeck.metrics.pseudo_labels import coverage, precision
from limbeck.models.classifier import Classifier
from limbeck.stages.engine import Engine
from limbeck.stages.objective import Batch, Plan, Terms
from limbeck.stages.score import Table, score
from limbeck.teachers.averaged_vote import AveragedVote


class SPARSE(TranslationGame):
    """A classifier learns from few labels, and from unlabelled images that a generator turns into any class.

    Source: Manni et al., "SPARSE Data, Rich Results: Few-Shot Semi-Supervised Learning via Class-Conditioned Image
    Translation", arXiv 2508.06429 (2025), equations as of the released code; of the paper only the abstract was read.
    Generator G, discriminator D and classifier C all tell classes, by logits z_m. Phase 1, labelled images, each m:

        L_m = CE(y, -|q - r_c|^2) + 0.1 M + 0.1 H(softmax z_m) + CE(lam y + (1 - lam) y', z_m(mixed x)) + B(z_m, y)
        M = sum_m [CE(y, z_m) + 0.1 KL(mean of the others' q || q_m)],   q = softmax(z / T),   B not for G,

    with r_c the mean q of class c in the batch and B the binary cross-entropy summed over the classes. Phase 2,
    unlabelled images x: D and G play :class:`TranslationGame`, with targets t drawn uniformly and pseudo labels yhat
    of the vote v of C and D (:class:`AveragedVote`), which count where max v reaches its quantile in the batch. Phase
    3: C learns t from what the new G made.

    An update is phase 1 on a labelled batch, or phases 2 and 3 on an unlabelled one: first a pass over the
    labelled images, then one over the others, then mu - 1 over the labelled ones, and again. C is kept; D and the
    mean of both softmaxes (how the paper's ensemble averages is an assumption) are measured too.

    Differs from the released code: averages of predictions are kept for each image, of probabilities (there they begin
    anew in each batch, of logits); labels below the quantile do not count (there all of a batch do, or none); M has
    gradients, each network's own. Choices: the steps of phase 1 are taken at once, pseudo labels are made in training
    mode, with ``accumulate`` r_c is that of a micro-batch, and ``clip_grad_norm`` in phase 1 cuts C's gradient only.

    Args:
        student: C.
        mu: passes over the labelled images for each one over the unlabelled ones (README: 10 was best).
        quantile: of max v in a batch, from which on a pseudo label counts.
        lambda_gp: weight of the gradient penalty.
        lambda_rec: weight of the way back.
        mixup_alpha: of the Beta distribution of lam, one for each network.
        T: temperature of q.
        T_vote: temperature of the vote.
        average_decay: share of an image's average that an update leaves.
        past_weight: share of that average in v.
        generator_width: channels of G's first level.
        critic_width: channels of D's first convolution.
        critic_depth: how often D halves the image (6 for 128x128).
        gan_weight_decay: of G and D; null: the fit's, which is C's.
    """

    progress: ClassVar[tuple[str, str]] = ("accuracy", "higher")

    def __init__(
        self,
        student: Classifier,
        mu: int = 5,
        quantile: float = 0.75,
        lambda_gp: float = 10.0,
        lambda_rec: float = 10.0,
        mixup_alpha: float = 0.2,
        T: float = 0.1,
        T_vote: float = 0.5,
        average_decay: float = 0.99,
        past_weight: float = 0.3,
        generator_width: int = 64,
        critic_width: int = 64,
        critic_depth: int = 6,
        gan_weight_decay: float | None = 0.01,
    ) -> None:
        super().__init__(student, generator_width, critic_width, critic_depth, lambda_gp, lambda_rec)
        if mu < 1 or not T > 0 or not mixup_alpha > 0 or not 0 <= quantile <= 1:
            raise LimbeckError(
                f"mu is {mu}, T {T}, mixup_alpha {mixup_alpha} and quantile {quantile}; they must be at least 1, above "
                "0, above 0 and in [0, 1]"
            )
        if gan_weight_decay is not None and not gan_weight_decay >= 0:
            raise LimbeckError(f"gan_weight_decay is {gan_weight_decay}; it must be at least 0, or null")
        self.mu, self.quantile, self.mixup_alpha, self.T = mu, quantile, mixup_alpha, T
        self.gan_weight_decay = gan_weight_decay
        self.voting = {"temperature": T_vote, "decay": average_decay, "past_weight": past_weight}
        AveragedVote(1, len(student.classes), **self.voting)  # refuses what cannot be
        self.labeled_batches, self.unlabeled_batches = 1, 1

    def streams(self, data: ImageData, batch_size: int, seed: int) -> dict[str, Stream]:
        """Labelled and unlabelled images, in turn: of each update one of the two batches is used."""
        streams = labeled_beside_unlabeled(data, batch_size, seed)
        lengths = [max(1, len(streams[name].samples) // batch_size) for name in ("labeled", "unlabeled")]
        (self.labeled_batches, self.unlabeled_batches), self._unlabeled = lengths, data.unlabeled
        turns = [self.supervised(number) for number in range(self.mu * lengths[0] + lengths[1])]
        own = {"labeled": turns, "unlabeled": [not turn for turn in turns]}
        return {name: TurnStream(stream, own[name]) for name, stream in streams.items()}

    def begin(self, plan: Plan) -> None:
        """Make room for one average an image."""
        self.vote = AveragedVote(plan.num_samples, plan.num_classes, **self.voting)

    def supervised(self, number: int) -> bool:
        """Whether update ``number`` is one of phase 1."""
        place = number % (self.mu * self.labeled_batches + self.unlabeled_batches)
        return not self.labeled_batches <= place < self.labeled_batches + self.unlabeled_batches

    def step(self, batch: Batches, engine: Engine) -> None:
        """Phase 1, or phases 2 and 3."""
        others = [engine.optimizers[name] for name in ("generator", "discriminator")]
        if self.gan_weight_decay is not None:
            for optimizer in others:  # of two groups the second is of biases, which fit.decay_biases leaves alone
                optimizer.param_groups[0]["weight_decay"] = self.gan_weight_decay
        if not self.supervised(engine.number):
            batch = {**batch, "unlabeled": self.label(batch["unlabeled"])}
            engine.minimise(batch, terms="critic", optimizer="discriminator")
            engine.minimise(batch, terms="translation", optimizer="generator")
            engine.minimise(batch, terms="classifier")
            return
        for optimizer in others:
            optimizer.zero_grad()
        engine.minimise(batch)
        for optimizer in others:
            optimizer.step()

    def terms(self, batch: Batches) -> Terms:
        """Phase 1: sums over the networks, of which each has its own part of the gradient."""
        images, labels = self.generator.convert(batch["labeled"]["image"]), batch["labeled"]["label"]
        networks = (self.generator, lambda x: self.discriminator(x).logits, lambda x: self.student(x).logits)
        logits = torch.stack([network(images).float() for network in networks])
        mixed = []
        for network in networks:
            mixture, soft = mixup(images, Labels(labels), logits.shape[-1], self.mixup_alpha, torch.default_generator)
            mixed.append(soft_cross_entropy(network(mixture), soft.probabilities(logits.shape[-1])))
        hard = cross_entropy(logits, labels.expand(3, -1), reduction="none").mean(1).sum()
        return {
            "prototype": torch.stack([prototype_cross_entropy(z, labels, temperature=self.T) for z in logits]).sum(),
            "mutual": 0.1 * (hard + 0.1 * peer_divergence(logits, temperature=self.T)),
            "entropy": 0.1 * entropy(logits, reduction="none").mean(1).sum(),
            "mixup": torch.stack(mixed).sum(),
            "class": one_versus_rest(logits[1], labels) + one_versus_rest(logits[2], labels),
        }

    @torch.no_grad()
    def label(self, batch: Batch) -> Batch:
        """Unlabelled images with pseudo labels and their weights, targets, and places of the penalty."""
        logits, index = self.opinions(batch), batch["index"]
        pseudo = Labels(self.vote(logits, index))
        self.vote.update(logits, index)
        kept = confident(pseudo, quantile_threshold(confidence(pseudo), self.quantile, margin=0))
        self.observe(coverage=coverage(kept))
        if "hidden_label" in batch:
            truth = batch["hidden_label"]
            self.observe(precision=precision(kept, truth), **{"all/precision": precision(pseudo, truth)})
        target, share = torch.randint_like(index, len(self.student.classes)), torch.rand(index.shape).to(index.device)
        return {**batch, "pseudo": pseudo.predicted(), "weight": kept.weights, "target": target, "share": share}

    def summary(self) -> dict[str, float]:
        """How often the last pseudo labels are right: of the surest of all unlabelled images, and of all."""
        if self._unlabeled is None or self._unlabeled.hidden_labels is None:
            return {}
        pseudo = Labels(score(_Vote(self), self._unlabeled)["vote"])
        kept = confident(pseudo, quantile_threshold(confidence(pseudo), self.quantile, margin=0))
        found = {"kept_precision": kept, "all_precision": pseudo}
        return {name: float(precision(part, self._unlabeled.hidden_labels).value) for name, part in found.items()}


class _Vote(nn.Module):
    """Batch -> the column ``vote``, [B, K]."""

    def __init__(self, objective: SPARSE) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch) -> Table:
        """The column."""
        return {"vote": self.objective.vote(self.objective.opinions(batch), batch["index"])}
