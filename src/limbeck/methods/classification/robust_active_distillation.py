"""RAD: robust active distillation."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from limbeck.data.samples import ImageData
from limbeck.data.soft_samples import SoftSamples
from limbeck.errors import LimbeckError
from limbeck.labels.query import game_queries, half_random, k_center, largest
from limbeck.labels.scores import Gain, informativeness
from limbeck.labels.types import Labels
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.methods.method import Method
from limbeck.metrics.pseudo_labels import precision
from limbeck.models.classifier import Classifier
from limbeck.stages.evaluation import predict_logits, quality
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.score import Outputs, Score, Table
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.frozen import Frozen


class ActiveDistillation(Objective):
    """Cross-entropy with true labels, and with the teacher's probabilities on the samples that it was asked about.

    The mean over the mixed batch (a choice). ``facts`` go into the result.
    """

    def __init__(self, student: Classifier, facts: Mapping[str, float]) -> None:
        super().__init__()
        self.student = student
        self.facts = dict(facts)

    def terms(self, batch: Batch) -> Terms:
        """The mean over labelled and bought samples."""
        if "hidden_label" in batch:
            bought = Labels(batch["target"], (batch["label"] < 0).float())
            self.observe(precision=precision(bought, batch["hidden_label"]))
        return {"ce": soft_cross_entropy(self.student(batch).logits, batch["target"])}

    def summary(self) -> dict[str, float]:
        """What is known of the questions so far."""
        return self.facts


class RobustActiveDistillation:
    """A teacher that costs money and errs is asked about few samples: informative ones, hedged against its errors.

    Source: Baykal, Trinh, Iliopoulos, Menghani, Vee, "Robust Active Distillation", arXiv 2210.01213 (ICLR 2023). In
    each round a student trained on the labelled samples and all answers bought so far, from its first weights, says how
    much each of the n remaining samples would teach: g = 1 - (p_1 - p_2), the margin of its two most probable classes.
    Which m of them the teacher gets wrong is up to an adversary, m being its error on held-out data times n. From

        max_p min_{|S| = m} sum_{i not in S} p_i g_i,

    which asks about the I* samples of the largest gains, each with a probability inverse to its gain (see
    :func:`limbeck.labels.query.maxmin_game`), ``queries`` samples are drawn and answered. No weight has to be tuned.

    No code was released. From the abstract: the game, and that nothing but m is needed; from memory of the paper: the
    closed form (its optimality is derived), the margin, m, training from scratch, the variant with losses and dependent
    rounding. Choices: sampling one after the other without replacement, what is done where the game asks about fewer
    samples than are to be bought, ``wrong_loss``, temperature 1, the mean over mixed batches, rounds and queries (the
    paper's depend on the data). The teacher's errors on the pool, where the truth is known, are reported only.

    Args:
        data: labelled samples, and the pool without labels.
        student: trained anew in every round; the last one is kept.
        teacher: whom to ask; a nested method is trained on the labelled samples first.
        fit: of the student, in every round.
        queries: answers bought in a round.
        rounds: how many times answers are bought.
        rule: the game, or what it is compared with: the largest gains; half of these, half at random; random; or the
            k-centre rule in the student's features (core-set).
        gain: of what a sample is worth: margin, entropy or least_confidence of the student's prediction.
        error_rate: the teacher's, in [0, 1]; null: measured on the validation data.
        wrong_loss: what a wrong answer costs, in gains of its sample; 0 is the game above.
        sampling: multinomial without replacement, or dependent rounding.
        temperature: of the teacher's softmax.
    """

    def __init__(
        self,
        data: ImageData,
        student: Classifier,
        teacher: Method,
        fit: FitSettings,
        queries: int = 1000,
        rounds: int = 5,
        rule: Literal["rad", "greedy", "half", "random", "coreset"] = "rad",
        gain: Gain = "margin",
        error_rate: float | None = None,
        wrong_loss: float = 0.0,
        sampling: Literal["multinomial", "rounding"] = "multinomial",
        temperature: float = 1.0,
    ) -> None:
        if data.unlabeled is None:
            raise LimbeckError(
                "there is no pool to ask about: say how many of each class are labelled, as in data.labels_per_class=30"
            )
        if queries < 1 or rounds < 0 or queries * rounds > len(data.unlabeled):
            raise LimbeckError(
                f"queries is {queries} and rounds {rounds}; the pool has {len(data.unlabeled)} samples, and none is "
                "asked about twice"
            )
        if error_rate is not None and not 0 <= error_rate <= 1:
            raise LimbeckError(f"error_rate is {error_rate}; it must lie between 0 and 1")
        if not wrong_loss >= 0:
            raise LimbeckError(f"wrong_loss is {wrong_loss}; it must be at least 0")
        if not temperature > 0:
            raise LimbeckError(f"temperature is {temperature}; it must be above 0")
        self.data, self.student, self.teacher, self.fit, self.pool = data, student, teacher, fit, data.unlabeled
        self.queries, self.rounds, self.rule, self.gain = queries, rounds, rule, gain
        self.error_rate, self.wrong_loss, self.sampling = error_rate, wrong_loss, sampling
        self.temperature = temperature

    def program(self) -> Program:
        """In every round: train, look at the pool, choose, ask; then train on all answers."""
        teacher = yield from self.teacher.program()
        asked = Outputs(Frozen(teacher, classes=self.data.classes), temperature=self.temperature)
        error = self.error_rate
        if error is None:
            error = 1 - quality(predict_logits(asked.model, self.data.validation))["accuracy"]
        train, left = SoftSamples.labelled(self.data.train), torch.arange(len(self.pool))
        gains: list[Tensor] = []
        for number in range(self.rounds):
            model = yield self._fit(f"round-{number}", copy.deepcopy(self.student), train, gains, error)
            rest = self.pool.subset(left)
            known: Table = {}
            columns: list[Literal["probabilities", "features"]] = ["probabilities"]
            if self.rule == "coreset":
                columns.append("features")
                known = yield Score(f"known-{number}", Outputs(model, ["features"]), train, self.fit)
            looked: Table = yield Score(f"pool-{number}", Outputs(model, columns), rest, self.fit)
            chosen = self._choose(looked, known, error * len(rest))
            answers: Table = yield Score(f"query-{number}", asked, rest.subset(chosen), self.fit)
            gains.append(informativeness(looked["probabilities"])[chosen])
            train = train.joined(rest.subset(chosen), answers["probabilities"])
            left = left[~torch.isin(torch.arange(len(left)), chosen)]
        return (yield self._fit("fit", self.student, train, gains, error))

    def _choose(self, looked: Table, known: Table, m: float) -> Tensor:
        """Positions of the samples that the teacher is asked about next, int64 [queries]."""
        gains = informativeness(looked["probabilities"], self.gain)
        if self.rule == "rad":
            return game_queries(gains, m, self.queries, self.wrong_loss * gains, self.sampling)
        if self.rule == "greedy":
            return largest(gains, self.queries)
        if self.rule == "half":
            return half_random(gains, self.queries)
        if self.rule == "coreset":
            return k_center(looked["features"], known["features"], self.queries)
        return torch.randperm(len(gains))[: self.queries]

    def _fit(self, name: str, student: Classifier, train: SoftSamples, gains: list[Tensor], error: float) -> Fit:
        """A training on all that is known so far, with what is to be reported of it."""
        facts = {"teacher_error": error, "queries": float(sum(len(some) for some in gains))}
        if gains:
            facts["queried_gain"] = float(torch.cat(gains).mean())
        if train.hidden_labels is not None:
            right = precision(Labels(train.targets, (train.labels < 0).float()), train.hidden_labels)
            if right.count > 0:
                facts["wrong_labels"] = 1 - float(right.value)
        data = dataclasses.replace(self.data, train=train, unlabeled=None)
        return Fit(name, ActiveDistillation(student, facts), data, self.fit)
