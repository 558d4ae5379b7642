"""DistillNearest and DistillWeighted: distilling from models that were trained on similar tasks."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from limbeck.data.samples import ImageData
from limbeck.data.semi_supervised import Batches, labeled_and_unlabeled
from limbeck.data.splits import balanced
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy, soft_cross_entropy
from limbeck.methods.classification.linear_probe import LinearProbe
from limbeck.methods.classification.supervised import Supervised
from limbeck.methods.sources import (
    COMPARING,
    Measure,
    check_measure,
    comparable,
    num_layers,
    open_sources,
    task_similarity,
    train_sources,
)
from limbeck.models.classifier import Classifier
from limbeck.models.heads import num_features, replace_head
from limbeck.models.joint import joint_forward
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Objective, Terms
from limbeck.stages.score import Outputs, Score
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.ensemble import Ensemble, power_weights
from limbeck.teachers.frozen import Frozen


class WeightedDistillation(Objective):
    """Cross-entropy on the labels, and on what each source says about its own classes; see :class:`DistillWeighted`.

    A source of weight 0 is left out. With ``label_space="target"`` the student's own head learns from all sources.
    """

    def __init__(
        self,
        student: Classifier,
        sources: Sequence[Classifier | Ensemble],
        weights: Sequence[float],
        lambda_: float = 0.8,
        mu: int = 1,
        label_space: Literal["source", "target"] = "source",
        scores: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        used = [(source, weight) for source, weight in zip(sources, weights, strict=True) if weight > 0]
        self.student: Classifier = student
        self.sources = nn.ModuleList(Frozen(source) for source, _ in used)
        self.weights = [weight for _, weight in used]
        self.heads: nn.ModuleList | None = None
        if label_space == "source":
            inputs = num_features(student, "DistillWeighted")
            self.heads = nn.ModuleList(nn.Linear(inputs, len(source.classes)) for source, _ in used)
        self.lambda_, self.mu = lambda_, mu
        self.scores = tuple((scores or {}).items())  # plain data: part of what decides the result

    def streams(self, data: ImageData, batch_size: int, seed: int) -> dict[str, Stream]:
        """Labelled images, and all images of the task without labels."""
        return labeled_and_unlabeled(data, batch_size, seed, ratio=self.mu, views=data.training_views)

    def terms(self, batch: Batches) -> Terms:
        """The two terms of the equation."""
        labeled, unlabeled = joint_forward(self.student, batch["labeled"]["image"], batch["unlabeled"]["image"])
        distilled = []
        for place, (source, weight) in enumerate(zip(self.sources, self.weights, strict=True)):
            said = source(batch["unlabeled"]).logits.float().softmax(dim=-1)
            logits = unlabeled.logits if self.heads is None else self.heads[place](unlabeled.features)
            distilled.append(weight * soft_cross_entropy(logits, said))
        return {
            "ce": self.lambda_ * cross_entropy(labeled.logits, batch["labeled"]["label"]),
            "distillation": (1 - self.lambda_) * torch.stack(distilled).sum(),
        }

    def summary(self) -> dict[str, float]:
        """How similar each source is to the task, and its weight."""
        return dict(self.scores)


class DistillWeighted:
    """A student learns from few labels, and from models of other tasks by how similar these are to its own.

    Source: Borup, Phoo, Hariharan, "Distilling from Similar Tasks for Transfer Learning on a Budget", arXiv 2304.12314
    (ICCV 2023). Of S source models M_s, each for its own classes, a measure e_s tells from their features of labelled
    images of the task how similar their tasks are:

        w_s = max(e_s, 0)^p / sum_j max(e_j, 0)^p
        L = lambda mean_l CE(h_0(phi_0(x_l)), y_l) + (1 - lambda) sum_s w_s mean_u CE(M_s(u), softmax(g_s(phi_0(u))))

    over labelled images x_l and all images u, labels ignored; phi_0 and h_0 are the student's body and head, and g_s is
    a linear head for the classes of source s, which the finished student does not have. ``p = 0`` weighs all sources
    equally, ``p = .inf`` is DistillNearest. No data of the sources are needed, and no teacher of the task.

    No code of the method was released. Loss, heads, p = 12 and lambda = 0.8 are from memory of the paper and could not
    be checked; mu, the min-max scaling of measures that are logarithms and the label space ``target`` are choices. The
    measures are those of PARC's and LogME's released code, see :mod:`limbeck.metrics.transferability`.

    Args:
        data: the task, with unlabelled images.
        student: the model to train; the paper starts from ImageNet weights.
        sources: model blocks by name. A saved model (name: folder or hub) comes with its classes; one with ``data`` (a
            data block) is trained on them first, by cross-entropy; a pretrained one says how many ``classes`` it has,
            as in {name: timm, model: resnet50, pretrained: true, classes: 1000}. The splits of ``data`` are those of
            seed 0.
        fit: of the student.
        pretraining: of the sources that are trained first, and of linear probes.
        measure: parc, rsa, cka, dds, leep, nce, h_score, knn or logme; rsa, cka and dds compare with a copy of the
            student that is trained on the labelled images first.
        p: how sharply similarity becomes weight.
        lambda_: weight of the labels.
        label_space: source: one head a source. target: each source gets a linear probe on the labelled images, and the
            student's own head learns from their weighted mean ``sum_s w_s M_s(u)``.
        mu: images u for each labelled one; ``fit.batch_size`` counts the labelled.
        probe: labelled images for the measure, at most, as many of each class.
        dims: principal components of the features for the measure; null for the features themselves.
        capacity: add PARC's correction for the capacity of the sources, by their convolutional and linear layers.
    """

    def __init__(
        self,
        data: ImageData,
        student: Classifier,
        sources: dict[str, dict[str, Any]],
        fit: FitSettings,
        pretraining: FitSettings,
        measure: Measure = "parc",
        p: float = 12.0,
        lambda_: float = 0.8,
        label_space: Literal["source", "target"] = "source",
        mu: int = 1,
        probe: int = 500,
        dims: int | None = 32,
        capacity: bool = False,
    ) -> None:
        if not 0 <= lambda_ <= 1:
            raise LimbeckError(f"lambda_ is {lambda_}; it must lie between 0 and 1")
        power_weights([1.0], p)
        check_measure(measure)
        labeled_and_unlabeled(data, fit.batch_size, 0, ratio=mu, views={})
        self.probe = balanced(data.train, probe, seed=0)
        counts = torch.bincount(self.probe.labels, minlength=len(data.classes))
        if counts.min() < 2:
            raise LimbeckError(
                f"probe: the measure needs two labelled images of every class, and of {probe} at most there are "
                f"{counts.tolist()}; label more, or raise probe"
            )
        self.opened = open_sources(sources)
        self.labelled = dataclasses.replace(data, unlabeled=None)
        self.data, self.student, self.sources, self.fit, self.pretraining = data, student, sources, fit, pretraining
        self.measure, self.p, self.dims, self.capacity = measure, p, dims, capacity
        self.lambda_, self.mu, self.label_space = lambda_, mu, label_space

    def program(self) -> Program:
        """Train the sources that are not yet, measure how similar their tasks are, then distil."""
        models = yield from train_sources(self.sources, self.opened, self.data, self.pretraining)
        scores = yield from self.similarities(models)
        layers = {name: num_layers(model) for name, model in models.items()} if self.capacity else None
        weights = dict(zip(models, power_weights(comparable(scores, self.measure, layers), self.p), strict=True))
        numbers = {f"similarity/{name}": score for name, score in scores.items()}
        numbers |= {f"weight/{name}": weight for name, weight in weights.items()}
        sources: list[Classifier | Ensemble] = list(models.values())
        shares = list(weights.values())
        if self.label_space == "target":
            sources, shares = [(yield from self.probed(models, weights))], [1.0]
        made = WeightedDistillation(self.student, sources, shares, self.lambda_, self.mu, self.label_space, numbers)
        return (yield Fit("fit", made, self.data, self.fit))

    def similarities(self, models: Mapping[str, Classifier]) -> Program:
        """e_s by the name of the source."""
        reference = None
        if self.measure in COMPARING:
            tuned = yield Fit("reference", Supervised(copy.deepcopy(self.student)), self.labelled, self.fit)
            said = yield Score("features-reference", Outputs(tuned, ["features"]), self.probe, self.fit)
            reference = said["features"]
        found = {}
        for name, model in models.items():
            outputs = Outputs(model, ["probabilities", "features"])
            said = yield Score(f"features-{name}", outputs, self.probe, self.fit)
            found[name] = task_similarity(self.measure, said, self.probe.labels, reference, self.dims)
        return found

    def probed(self, models: Mapping[str, Classifier], weights: Mapping[str, float]) -> Program:
        """The weighted mean of all sources, each with a linear probe for the task in the place of its head."""
        members = {}
        for name, model in models.items():
            if weights[name] > 0:
                probe = LinearProbe(replace_head(copy.deepcopy(model), self.data.classes), self.data.train)
                members[name] = yield Fit(f"probe-{name}", probe, self.labelled, self.pretraining)
        return Ensemble(list(members.values()), [weights[name] for name in members])
