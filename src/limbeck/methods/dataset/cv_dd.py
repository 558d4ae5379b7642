"""CV-DD: dataset distillation by a committee."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from limbeck.data.samples import ImageData
from limbeck.data.store import Mix
from limbeck.errors import LimbeckError
from limbeck.methods.classification.supervised import Supervised
from limbeck.methods.dataset.recovery import Init
from limbeck.methods.dataset.sre2l import SRe2L
from limbeck.methods.method import Nested, Ready
from limbeck.models.build import build
from limbeck.models.classifier import Classifier
from limbeck.models.folder import READERS
from limbeck.stages.evaluation import predict_logits, quality
from limbeck.stages.fit import Fit
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.ensemble import prior_weights


class CVDD:
    """Images that several networks vote on, each by how good the images are that it makes alone.

    Source: Cui, Li, Ma, Bi, Luo, Shen, "Dataset Distillation via Committee Voting", arXiv 2501.07575 (2025), on the
    pipeline of :class:`~limbeck.methods.dataset.sre2l.SRe2L`, of which it is the case of several networks. With the
    prior p_j of network j, the accuracy (per cent) of a student trained on images of that network alone:

        w_j = exp(p_j / tau_w) / sum_k exp(p_k / tau_w)      over those who vote on an image
        L = sum_j w_j (CE(f_j(x'), y) + alpha R_BN_j(x'))

    Labels are batch-specific: ``z = sum_j w_j f_j(x)`` over the whole committee, with another tau_w, every f_j
    normalised by the statistics of the current micro-batch. Images start from patches of real ones; the student sees
    the same small batches, with a smoothed schedule (``fit.schedule.eta``).

    Who votes (released code): on one image a class the best pair, on as many as there are pairs each pair in turn, else
    a random pair each; how it goes on between these cases is a choice (in turn as long as there are pairs enough).
    Without ``priors`` they are measured here on the validation data; the released code has constants, deduced to be
    accuracies of SRe2L++ on the test data.

    Differs from the released code: see SRe2L; dropout of the labelling networks stays off.

    Args:
        data: the real data.
        student: trained on the synthetic images and returned.
        committee: the networks with batch normalisation, each a model block such as {name: cnn, width: 16}; they are
            squeezed first, except for saved ones (name: folder or hub).
        squeeze: how the committee is trained on the real data (paper, CIFAR: Adam 1e-3, weight decay 1e-4, 200 epochs).
        fit: of the post-evaluation (paper: batches of 16 in 2 micro-batches, 300 epochs, AdamW 1e-3).
        priors: p_j in per cent, one a network; null: measured, by one distillation each.
        voters: networks that vote on an image.
        prior_temperature: tau_w of the votes.
        label_temperature: tau_w of the labels.
        ipc: images a class.
        iterations: steps of recovery.
        lr: of recovery, in normalised pixels.
        alpha: weight of the statistics.
        first_bn: weight of the first layer's statistics.
        tv: weight of the total variation of the images.
        l2: weight of the norm of the images.
        init: images start from noise, from patches of real images, or are real images.
        crop: networks see random parts of the images in recovery.
        jitter: largest shift in recovery, in pixels.
        view: augmentation of relabelling and post-evaluation.
        labels: networks in eval mode, or normalised by each batch.
        mix: cutmix or mixup of the labelled batches.
        mix_alpha: of their Beta distribution.
        temperature: tau of the post-evaluation.
        storage: precision of stored logits.
        assess: nothing, images or all, see SRe2L.
    """

    def __init__(
        self,
        data: ImageData,
        student: Classifier,
        committee: list[dict[str, Any]],
        squeeze: FitSettings,
        fit: FitSettings,
        priors: list[float] | None = None,
        voters: int = 2,
        prior_temperature: float = 5.0,
        label_temperature: float = 10.0,
        ipc: int = 10,
        iterations: int = 4000,
        lr: float = 0.25,
        alpha: float = 0.01,
        first_bn: float = 10.0,
        tv: float = 0.0,
        l2: float = 0.0,
        init: Init = "patches",
        crop: bool = True,
        jitter: int = 32,
        view: str = "crop",
        labels: Literal["eval", "batch"] = "batch",
        mix: Mix = "cutmix",
        mix_alpha: float = 1.0,
        temperature: float = 20.0,
        storage: Literal["float16", "float32"] = "float16",
        assess: Literal["nothing", "images", "all"] = "nothing",
    ) -> None:
        if not 1 <= voters <= len(committee):
            raise LimbeckError(f"voters is {voters}; it must lie between 1 and the {len(committee)} of the committee")
        if priors is not None and len(priors) != len(committee):
            raise LimbeckError(f"there are {len(priors)} priors for a committee of {len(committee)}; give one each")
        for temperature_of_priors in (prior_temperature, label_temperature):
            prior_weights(priors or [0.0], temperature_of_priors)
        for number, block in enumerate(committee):
            if not isinstance(block.get("name"), str):
                raise LimbeckError(f"committee[{number}] is {block}; it must be a model block with a name")
        self.data, self.student, self.committee, self.squeeze, self.fit = data, student, committee, squeeze, fit
        self.priors, self.voters = priors, voters
        self.prior_temperature, self.label_temperature = prior_temperature, label_temperature
        self.recipe: dict[str, Any] = {
            "ipc": ipc,
            "iterations": iterations,
            "lr": lr,
            "alpha": alpha,
            "first_bn": first_bn,
            "tv": tv,
            "l2": l2,
            "init": init,
            "crop": crop,
            "jitter": jitter,
            "view": view,
            "labels": labels,
            "mix": mix,
            "mix_alpha": mix_alpha,
            "temperature": temperature,
            "storage": storage,
        }
        # One voter is SRe2L; made here so that what it refuses is refused before anything is trained.
        self.pipeline = SRe2L(data, student, Ready(student), fit, **self.recipe, assess=assess)

    def program(self) -> Program:
        """Squeeze the committee, measure its priors if they are not given, then distil by vote."""
        networks = [cast("Classifier", build(**block, task=self.data.task)) for block in self.committee]
        for number, (block, network) in enumerate(zip(self.committee, networks, strict=True)):
            if block["name"] not in READERS:
                networks[number] = yield Fit(f"squeeze-{number}", Supervised(network), self.data, self.squeeze)
        priors = self.priors if self.priors is not None else (yield from self.measure(networks))
        votes = ballot(priors, self.voters, self.pipeline.ipc, self.prior_temperature)
        return (yield from self.pipeline.distil(networks, votes, prior_weights(priors, self.label_temperature)))

    def measure(self, networks: Sequence[Classifier]) -> Program:
        """Validation accuracy (per cent) of a student trained on images of each network alone."""
        priors = []
        for number, network in enumerate(networks):
            alone = SRe2L(self.data, copy.deepcopy(self.student), Ready(network), self.fit, **self.recipe)
            student = yield from Nested(f"prior-{number}", alone).program()
            priors.append(100 * quality(predict_logits(student, self.data.validation))["accuracy"])
        return priors


def ballot(priors: Sequence[float], voters: int, ipc: int, temperature: float) -> Tensor:
    """Who votes on which image, with which weight: float [ipc, committee], rows of sum 1.

    A random group of ``voters`` is drawn from torch's global generator.
    """
    groups = list(itertools.combinations(range(len(priors)), voters))
    if ipc == 1:
        chosen = [max(groups, key=lambda group: sum(priors[j] for j in group))]
    elif ipc <= len(groups):
        chosen = groups[:ipc]
    elif len(groups) == 1:
        chosen = groups * ipc
    else:
        chosen = [groups[at] for at in torch.randint(len(groups), (ipc,)).tolist()]
    votes = torch.zeros(ipc, len(priors))
    for row, group in zip(votes, chosen, strict=True):
        row[list(group)] = torch.tensor(prior_weights([priors[j] for j in group], temperature))
    return votes
