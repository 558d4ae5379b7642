"""KD on pruned data: a teacher trained on all samples, a student on few of them."""

import copy
import dataclasses
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data.samples import ImageData, Samples
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.prune import keep_hardest
from limbeck.labels.scores import prototype_distance
from limbeck.labels.types import Labels
from limbeck.methods.classification.kd import KD
from limbeck.methods.classification.supervised import Supervised
from limbeck.methods.classification.training_dynamics import Rule, watch
from limbeck.methods.method import Method
from limbeck.models.classifier import Classifier
from limbeck.models.model import Model
from limbeck.stages.evaluation import predict_logits, quality
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Terms
from limbeck.stages.score import Outputs, Score, given_scores
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.frozen import Frozen

WATCHED: dict[str, Rule] = {"forgetting": "forgetting", "el2n": "el2n", "grand": "grand"}
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Among which alpha is searched."""


class PrunedKD(KD):
    """KD on the kept samples; ``facts`` go into the result, and the ``gain`` over their ``ce/accuracy``."""

    def __init__(
        self,
        student: Classifier,
        teacher: Frozen,
        alpha: float,
        temperature: float = 4.0,
        scale_by_t2: bool = True,
        facts: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(student, teacher, alpha, temperature)
        self.scale_by_t2 = scale_by_t2
        self.facts = {"alpha": alpha, **(facts or {})}

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream:
        """The kept samples."""
        self._test = data.test
        return super().streams(data, batch_size, seed)

    def terms(self, batch: Batch) -> Terms:
        """The hard and the soft term of the equation."""
        terms = super().terms(batch)
        assert isinstance(terms["kd"], Tensor)
        return terms if self.scale_by_t2 else {**terms, "kd": terms["kd"] / self.temperature**2}

    def summary(self) -> dict[str, float]:
        """What is known of the kept samples, and what the teacher gained."""
        if "ce/accuracy" not in self.facts:
            return self.facts
        return {**self.facts, "gain": accuracy(self.student, self._test) - self.facts["ce/accuracy"]}


class KDDataPruning:
    """The student sees a fraction f of the samples, with their labels and what a teacher that saw all says of them.

    Source: Ben-Baruch, Botach, Kviatkovsky, Aggarwal, Medioni, "Distilling the Knowledge in Data Pruning", arXiv
    2403.07854 (2024; ICML 2025). A network trains on all N samples once, which also scores them; the floor(f N) hardest
    are kept, or random ones, which the paper recommends where there is a teacher. On these, in the student's view,

        L = (1 - alpha) CE(y, z_S) + alpha tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau)).

    The smaller f, the larger alpha should be. The paper gives no formula; ours is alpha_max - (alpha_max - alpha_min) f
    (a choice). alpha = 0 is cross-entropy on the kept samples, f = 1 is KD. By way of the teacher the student learns of
    pruned samples too: a comparison with pruning alone must say so. ``fit.epochs`` gives the equal epochs of most work
    on pruning (the smaller f, the fewer updates), ``fit.updates`` equal updates.

    No code was released. From abstract and reviews: the setting, and alpha against f. From memory: rules, tau = 4.
    Choices: tau^2, f, the epochs of the scores, one sample of every class at least, and prototypes in the teacher's
    features (the source of that rule takes self-supervised ones: ``embedder``).

    Args:
        data: all samples.
        student: trained on the kept samples, from first weights of its own.
        fit: of the student.
        teacher: trained on all samples, of any size; null: the student's architecture, trained as ``full`` says.
        full: the training on all samples that scores them; null: as ``fit``.
        embedder: a network whose features the prototypes are of; null: the teacher.
        fraction: f, in (0, 1].
        pruning: random; forgetting, el2n or grand of the training on all samples; prototypes, the distance to the next
            centre of k-means; or given. The largest numbers are kept.
        class_balanced: keep the same fraction of every class.
        alpha: weight of the teacher, in [0, 1]; auto; or search, the best of six on the validation data.
        alpha_min: alpha of auto at f = 1.
        alpha_max: alpha of auto at f = 0.
        temperature: tau.
        scale_by_t2: whether the teacher's term has the factor tau^2.
        checkpoints: over how many first epochs el2n and grand are averaged.
        runs: trainings on all samples over which scores are averaged.
        clusters: number of prototypes; null: as many as classes.
        scores: for given: a .npy file, one number for each index of the source (memorisation, influence ...).
        compare: also train the student on the kept samples without the teacher, for ``ce/accuracy`` and ``gain``.
    """

    def __init__(
        self,
        data: ImageData,
        student: Classifier,
        fit: FitSettings,
        teacher: Method | None = None,
        full: FitSettings | None = None,
        embedder: Method | None = None,
        fraction: float = 0.5,
        pruning: Literal["random", "forgetting", "el2n", "grand", "prototypes", "given"] = "random",
        class_balanced: bool = False,
        alpha: float | Literal["auto", "search"] = "auto",
        alpha_min: float = 0.5,
        alpha_max: float = 1.0,
        temperature: float = 4.0,
        scale_by_t2: bool = True,
        checkpoints: int = 3,
        runs: int = 1,
        clusters: int | None = None,
        scores: str | None = None,
        compare: bool = False,
    ) -> None:
        shares = {"fraction": fraction, "alpha": alpha, "alpha_min": alpha_min, "alpha_max": alpha_max}
        for name, share in shares.items():
            if not isinstance(share, str) and not 0 <= share <= 1:
                raise LimbeckError(f"{name} is {share}; it must lie between 0 and 1")
        for name, number in (("fraction", fraction), ("temperature", temperature)):
            if not number > 0:
                raise LimbeckError(f"{name} is {number}; it must be above 0")
        clusters = len(data.classes) if clusters is None else clusters
        for name, count in (("checkpoints", checkpoints), ("runs", runs), ("clusters", clusters)):
            if not 1 <= count <= len(data.train):
                raise LimbeckError(f"{name} is {count}; it must lie between 1 and the {len(data.train)} samples")
        if (data.train.labels < 0).any():
            raise LimbeckError("pruning needs the labels of all training samples, and some have none")
        if (scores is None) == (pruning == "given"):
            raise LimbeckError("scores names a file for pruning: given, and for no other rule")
        self.data, self.student, self.fit, self.teacher = data, student, fit, teacher
        self.full, self.embedder, self.runs, self.checkpoints = full or fit, embedder, runs, checkpoints
        self.fraction, self.pruning, self.class_balanced, self.clusters = fraction, pruning, class_balanced, clusters
        self.alpha = alpha_max - (alpha_max - alpha_min) * fraction if alpha == "auto" else alpha
        self.loss: dict[str, Any] = {"temperature": temperature, "scale_by_t2": scale_by_t2}
        self.given = None if scores is None else given_scores(Path(scores), data.train)
        self.compare = compare

    def program(self) -> Program:
        """Train on all samples, score and prune, then distil on what is kept."""
        draws = torch.rand(len(self.data.train))  # before any stage: the same for every f, so subsets are nested
        rule = WATCHED.get(self.pruning, "none")
        if self.teacher is None or rule != "none":
            runs = self.runs if rule != "none" else 1
            watched = yield from watch(self.student, self.data, self.full, rule, runs, self.checkpoints)
        model = watched.model if self.teacher is None else (yield from self.teacher.program())
        teacher = Frozen(model, classes=self.data.classes)
        scores = draws if self.given is None else self.given
        if rule != "none":
            scores = watched.table[rule]
        elif self.pruning == "prototypes":
            embedder = model if self.embedder is None else (yield from self.embedder.program())
            table = yield Score("features", Outputs(embedder, ["features"]), self.data.train, self.fit)
            scores = prototype_distance(table["features"], self.clusters, seed=0)
        kept = keep_hardest(Labels(self.data.train.labels), scores, self.fraction, balanced=self.class_balanced)
        return (yield from self.distil(teacher, kept))

    def distil(self, teacher: Frozen, kept: Labels) -> Program:
        """Train the student on the samples whose weight is not 0."""
        data = dataclasses.replace(self.data, train=self.data.train.subset(kept.weights.nonzero()[:, 0]))
        counts = torch.bincount(data.train.labels, minlength=len(data.classes))
        facts = {"kept": float(len(data.train)), "kept/rarest": float(counts.min()), "kept/most": float(counts.max())}
        if self.compare:
            alone = yield Fit("ce", Supervised(copy.deepcopy(self.student)), data, self.fit)
            facts["ce/accuracy"] = accuracy(alone, data.test)
        alpha = self.alpha if not isinstance(self.alpha, str) else (yield from self.search(teacher, data))
        objective = PrunedKD(self.student, teacher, alpha, **self.loss, facts=facts)
        return (yield Fit("fit", objective, data, self.fit))

    def search(self, teacher: Frozen, data: ImageData) -> Generator[Any, Any, float]:
        """The alpha whose student is best on the validation data; of equal ones the smallest."""
        found: dict[float, float] = {}
        for alpha in ALPHAS:
            objective = PrunedKD(copy.deepcopy(self.student), teacher, alpha, **self.loss)
            model = yield Fit(f"alpha-{alpha}", objective, data, self.fit)
            found[alpha] = accuracy(model, data.validation)
        return max(found, key=lambda alpha: found[alpha])


def accuracy(model: Model, samples: Samples) -> float:
    """The fraction of samples whose most probable class is their label."""
    return quality(predict_logits(model, samples))["accuracy"]
