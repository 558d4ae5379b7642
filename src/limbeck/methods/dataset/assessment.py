"""What a distilled data set is worth: measured by networks that had no part in its making."""

import copy
import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import nn

from limbeck.data.samples import Samples
from limbeck.methods.classification.supervised import Supervised
from limbeck.methods.dataset.recovery import Recovery
from limbeck.models.classifier import Classifier
from limbeck.stages.evaluation import predict_logits, quality
from limbeck.stages.fit import Fit
from limbeck.stages.stage import Program
from limbeck.stages.synthesise import Synthesise

if TYPE_CHECKING:
    from limbeck.methods.dataset.sre2l import SRe2L


def verify_images(method: "SRe2L", images: Samples) -> Program:
    """Train the student's architecture on the real data, with hard labels, and let it judge the images.

    Returns:
        ``real/accuracy`` of that network on the test split, ``verifier/nll`` and ``verifier/accuracy`` of the images
        under it. It is held out where no network of the recovery has the student's architecture.
    """
    network = yield Fit("real", Supervised(copy.deepcopy(method.student)), method.data, method.fit)
    said = quality(predict_logits(network, images))
    return {
        "real/accuracy": _accuracy(network, method.data.test),
        "verifier/nll": said["nll"],
        "verifier/accuracy": said["accuracy"],
    }


def compare_images(method: "SRe2L", images: Samples, labeller: nn.Module) -> Program:
    """What the robust scores of DD-Ranking need beside the method's own result.

    Returns:
        Test accuracy of the student trained on the images with hard labels (``hard/accuracy``), and trained by the
        method's own relabelling on as many random real images (``random/accuracy``).
    """
    data = dataclasses.replace(method.data, train=images, view=method.view, unlabeled=None)
    hard = yield Fit("hard", Supervised(copy.deepcopy(method.student)), data, method.fit)
    settings = dataclasses.replace(method.pixels, iterations=0)
    voters = [m for m in method.voters if isinstance(m, Classifier)]
    weights = torch.ones(method.ipc, len(voters))
    chosen = yield Synthesise("random", Recovery(method.data, voters, weights, settings, init="images"))
    random = yield from method.post_evaluate(chosen, labeller, copy.deepcopy(method.student), prefix="random-")
    return {
        "hard/accuracy": _accuracy(hard, method.data.test),
        "random/accuracy": _accuracy(random, method.data.test),
    }


def _accuracy(model: nn.Module, samples: Samples) -> float:
    return quality(predict_logits(model, samples))["accuracy"]
