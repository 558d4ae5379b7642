"""Recovery: images whose labels networks see and whose statistics they know; shared by the methods of this folder."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.data import views
from limbeck.data.fingerprint import samples_hash
from limbeck.data.random import derive, permutation
from limbeck.data.samples import ImageData, Samples
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy
from limbeck.losses.statistics import StatisticsMatching, image_norm, image_variation
from limbeck.models.classifier import Classifier
from limbeck.stages.objective import Terms
from limbeck.stages.pixels import PixelSettings, PixelSynthesiser

Init = Literal["noise", "patches", "images"]
CLASSES = 100
"""Classes that share a chunk, one image each (released code)."""
CANDIDATES = 5
"""Patches among which the one of medium difficulty starts an image (a choice)."""


class Recovery(PixelSynthesiser):
    """Images whose labels the voters see and whose statistics they know from real images.

        L = sum_j w_j (CE(f_j(x'), y) + alpha R_BN_j(x')) + tv TV(x') + l2 ||x'||

    over what the voters f_j see of the images (x'). R_BN, TV and the norm: see :mod:`limbeck.losses.statistics`; priors
    are of pixels in [0, 1] (a choice; their weights are 0 in the papers). SRe2L (arXiv 2306.13092) has one voter,
    CV-DD (arXiv 2501.07575) several.

    Args:
        data: real images, for classes, normalisation and the first patches.
        voters: the squeezed networks f_j.
        weights: w, float [ipc, voters]: who votes on the i-th image of every class; 0 takes no part.
        settings: how pixels are optimised.
        alpha: weight of the statistics.
        first_bn: weight of the first normalisation layer among them.
        tv: weight of the total variation.
        l2: weight of the norm.
        init: what images start from: noise, patches of real images, or whole real images.

    Raises:
        LimbeckError: a network without running statistics or for other classes, or classes with too few images.
    """

    weights: Tensor
    candidates: Tensor

    def __init__(
        self,
        data: ImageData,
        voters: Sequence[Classifier],
        weights: Tensor,
        settings: PixelSettings,
        alpha: float = 0.01,
        first_bn: float = 10.0,
        tv: float = 0.0,
        l2: float = 0.0,
        init: Init = "noise",
    ) -> None:
        groups = torch.arange(len(data.classes)).split(CLASSES)
        super().__init__(data.task, [group for _ in range(len(weights)) for group in groups], settings)
        self.groups = len(groups)
        self.voters = nn.ModuleList(voters).requires_grad_(False).eval()
        self.register_buffer("weights", weights)
        self.alpha, self.first_bn, self.tv, self.l2, self.init = alpha, first_bn, tv, l2, init
        if init != "noise":
            self.samples, self.flip, self.real = data.train, data.flip, samples_hash(data.train)
            each = 1 if init == "images" else CANDIDATES
            self.register_buffer("candidates", _candidates(data.train, len(weights), each))
        for voter in voters:
            StatisticsMatching(voter)
            if voter.classes != data.classes:
                raise LimbeckError(f"a network knows the classes {list(voter.classes)}, the data {list(data.classes)}")

    def start(self, number: int) -> Tensor | None:
        """Noise, real images, or of five random patches a class the one whose cross-entropy is in the middle."""
        if self.init == "noise":
            return None
        labels = self.chunks[number]
        rows = self.candidates[number // self.groups].cpu()[labels]
        images = self.samples.fetch(rows.flatten())["image"]
        if self.init == "images":
            return images
        seed, every = int(torch.randint(2**62, ())), torch.arange(len(images))
        patches = views.apply(
            "crop", images, seed=seed, epochs=torch.zeros_like(every), indices=every, flip=self.flip
        ).to(self.weights.device)
        with torch.no_grad():
            target = labels.repeat_interleave(rows.shape[1]).to(patches.device)
            hard = [w * cross_entropy(f(patches).logits, target, reduction="none") for w, f in self.voting(number)]
        middle = torch.stack(hard).sum(0).view_as(rows).argsort(1)[:, rows.shape[1] // 2]
        return patches.unflatten(0, rows.shape)[torch.arange(len(rows)), middle]

    def voting(self, number: int) -> list[tuple[float, nn.Module]]:
        """Weight and network of those who vote on a chunk."""
        weights = self.weights[number // self.groups].tolist()
        return [(weight, voter) for weight, voter in zip(weights, self.voters, strict=True) if weight > 0]

    def terms(self, number: int, images: Tensor, labels: Tensor) -> Terms:
        """The terms of the equation."""
        ce, bn = [], []
        for weight, voter in self.voting(number):
            with StatisticsMatching(voter, self.first_bn) as matching:
                ce.append(weight * cross_entropy(voter(images).logits, labels))
                bn.append(weight * self.alpha * matching.distance())
        terms: Terms = {"ce": torch.stack(ce).sum(), "bn": torch.stack(bn).sum()}
        if self.tv:
            terms["tv"] = self.tv * image_variation(images)
        if self.l2:
            terms["l2"] = self.l2 * image_norm(images)
        return terms


def _candidates(samples: Samples, ipc: int, each: int) -> Tensor:
    """For every class and image ``each`` positions of real images of the class, int64 [ipc, C, each], all different.

    Where a class has too few they come again. Drawn from torch's global generator.

    Raises:
        LimbeckError: a class without images; or, for whole images, with fewer than ipc.
    """
    seed = int(torch.randint(2**62, ()))
    chosen = []
    for number, name in enumerate(samples.classes):
        members = torch.nonzero(samples.labels == number)[:, 0]
        if len(members) < (ipc if each == 1 else 1):
            raise LimbeckError(
                f"class {name!r} has {len(members)} training images; {ipc} images a class start from them"
            )
        order = members[torch.from_numpy(permutation(derive(seed, number), len(members)))]
        chosen.append(order[torch.arange(ipc * each) % len(order)].view(ipc, each))
    return torch.stack(chosen, dim=1)
