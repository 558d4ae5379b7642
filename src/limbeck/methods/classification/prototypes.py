"""Nearest class prototype in the features of another network."""

import copy
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.losses.reduction import Mean
from limbeck.methods.method import Method, sketch
from limbeck.models.classifier import Classifier
from limbeck.models.heads import num_features
from limbeck.models.model import Model
from limbeck.models.zero_shot import ZeroShotHead, with_zero_shot_head
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program


class ClassPrototypes(Objective):
    """Mean directions of a network's features become the vectors of its classes; nothing else of it changes.

    The loss that is logged is the squared distance of a sample's direction from its prototype. No step is taken along
    its gradient: prototypes are the closed form of all samples seen so far.

    Args:
        network: in eval mode throughout; its head is replaced.
        data: whose classes get prototypes.
        scale: of the logits.
    """

    student: Classifier
    sums: Tensor
    progress: ClassVar[tuple[str, str]] = ("accuracy", "higher")

    def __init__(self, network: Classifier, data: ImageData, scale: float) -> None:
        super().__init__()
        nothing = torch.zeros(len(data.classes), num_features(network, "prototypes"))
        self.student = with_zero_shot_head(network, nothing, data.classes, scale).requires_grad_(False)
        self.head.linear.weight.requires_grad_()
        self.register_buffer("sums", nothing)

    @property
    def head(self) -> ZeroShotHead:
        """Where the prototypes are."""
        assert self.student.head is not None
        head = self.student.body.get_submodule(self.student.head)
        assert isinstance(head, ZeroShotHead)
        return head

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: a prototype is a mean of what the finished network says."""
        return super().train(False)

    def terms(self, batch: Batch) -> Terms:
        """Mean squared distance of directions from the prototypes of their classes."""
        features = self.student(batch).features
        directions = F.normalize(features.float(), dim=-1)
        self.keep(directions=directions)
        labelled = batch["label"] >= 0
        distances = (directions - self.head.linear.weight[batch["label"].clamp(min=0)]).square().sum(-1)
        return {"distance": Mean.of(distances, labelled)}

    def after_update(self, batch: Batch) -> None:
        """Add the batch to the sums; the direction of a sum is that of the mean."""
        labelled = batch["label"] >= 0
        self.sums.index_add_(0, batch["label"][labelled], batch["directions"][labelled])
        self.head.linear.weight.copy_(F.normalize(self.sums, dim=-1))


class Prototypes:
    """A classifier without training: the class whose prototype has the most similar direction.

    Source: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", arXiv 1703.05175 (2017), equations 1
    and 2, with cosines in the place of distances, as in CLIP's zero-shot classifier (arXiv 2103.00020, section 3.1.2),
    whose text embeddings the prototypes stand for: with features E(x) of a network that was trained for something else,

        w_c = normalise(mean over labelled x of class c of E(x) / |E(x)|),   logits = scale W E(x) / |E(x)|.

    Args:
        data: whose labelled training images make the prototypes, in their training view.
        network: a classifier of any classes: a saved one, or a method that trains one.
        fit: how long images are read (an epoch: one view of each); its optimiser has no effect.
        scale: of the logits (CLIP: 100).
    """

    def __init__(self, data: ImageData, network: Method, fit: FitSettings, scale: float = 100.0) -> None:
        if not scale > 0:
            raise LimbeckError(f"scale is {scale}; it must be above 0")
        self.data, self.network, self.fit, self.scale = data, network, fit, scale

    def program(self) -> Program:
        """Train the network where need be, then take the prototypes."""
        self.sketch()  # a network that is none is refused before it is trained
        objective = self.objective((yield from self.network.program()))
        return (yield Fit("prototypes", objective, self.data, self.fit))

    def sketch(self) -> Model | None:
        """What the program would return, without its prototypes; see :func:`limbeck.methods.method.sketch`."""
        network = sketch(self.network)
        with torch.random.fork_rng(devices=[]):
            return None if network is None else self.objective(copy.deepcopy(network)).student

    def objective(self, network: Model) -> ClassPrototypes:
        """What fits the prototypes.

        Raises:
            LimbeckError: the network is no classifier of images, or one without a known head.
        """
        if not isinstance(network, Classifier):
            raise LimbeckError(f"prototypes need a classifier of images, and network is a {type(network).__name__}")
        return ClassPrototypes(network, self.data, self.scale)
