"""A discriminator, a generator that translates images between classes, and a classifier that learns from them."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from limbeck.data.semi_supervised import Batches
from limbeck.errors import LimbeckError
from limbeck.losses.adversarial import gradient_penalty
from limbeck.losses.one_versus_rest import one_versus_rest
from limbeck.losses.reduction import Mean
from limbeck.models.classifier import Classifier
from limbeck.models.critic_classifier import CriticClassifier
from limbeck.models.translator import Translator
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.frozen import Frozen


class TranslationGame(Objective):
    """What generator G, discriminator D and classifier C learn from unlabelled images x with pseudo labels yhat.

    With a target class t for each image, and B the binary cross-entropy summed over the classes,

        L_D = mean D(G(x, t)) - mean D(x) + lambda_gp GP + B(D_cls(x), yhat)
        L_G = -mean D(G(x, t)) + B(D_cls(G(x, t)), t) + B(G_cls(G(x, t)), t) + lambda_rec |G(G(x, t), yhat) - x|_1
        L_C = B(C(G(x, t)), t)

    (SPARSE, arXiv 2508.06429, as released; the game is that of StarGAN, arXiv 1711.09020). The l1 norm is a mean over
    pixels. Of the terms of yhat the mean over the images whose ``weight`` is not 0. The batch ``unlabeled`` holds
    ``image``, ``pseudo``, ``weight``, ``target`` and ``share``, the places of the gradient penalty, [B] each.

    Args:
        student: C.
        generator_width: channels of G's first level.
        critic_width: channels of D's first convolution.
        critic_depth: how often D halves the image.
        lambda_gp: weight of the gradient penalty.
        lambda_rec: weight of the way back.

    Raises:
        LimbeckError: a student without an image size or with one class, networks that cannot be, weights below 0.
    """

    student: Classifier
    updates: Tensor

    def __init__(
        self,
        student: Classifier,
        generator_width: int,
        critic_width: int,
        critic_depth: int,
        lambda_gp: float,
        lambda_rec: float,
    ) -> None:
        super().__init__()
        if student.size is None or len(student.classes) < 2:
            raise LimbeckError(
                "images are translated between the classes of a student: it needs a size and two classes"
            )
        if not min(lambda_gp, lambda_rec) >= 0:
            raise LimbeckError(f"lambda_gp is {lambda_gp} and lambda_rec {lambda_rec}; they must be at least 0")
        self.student, classes = student, student.classes
        self.generator = Translator(student.channels, len(classes), generator_width)
        self.discriminator = CriticClassifier(classes, student.channels, student.size, critic_width, critic_depth)
        self.lambda_gp, self.lambda_rec = lambda_gp, lambda_rec
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """C, G and D."""
        networks = {"main": self.student, "generator": self.generator, "discriminator": self.discriminator}
        return {name: network.parameters() for name, network in networks.items()}

    def opinions(self, batch: Batch) -> Tensor:
        """Logits of C and D, [2, B, K]."""
        return torch.stack([network(batch).logits.float() for network in (self.student, self.discriminator)])

    def translate(self, batch: Batches) -> tuple[Tensor, Tensor]:
        """The images x, and G(x, t)."""
        images = self.generator.convert(batch["unlabeled"]["image"])
        return images, self.generator(images, batch["unlabeled"]["target"])

    def critic(self, batch: Batches) -> Terms:
        """L_D."""
        pseudo, weight, share = (batch["unlabeled"][name] for name in ("pseudo", "weight", "share"))
        with torch.no_grad():
            images, made = self.translate(batch)
        said = self.discriminator(images)
        penalty = gradient_penalty(lambda x: self.discriminator(x).realness, images, made, share)
        return {
            "adversarial": self.discriminator(made).realness.mean() - said.realness.mean(),
            "penalty": self.lambda_gp * penalty,
            "class": Mean.of(one_versus_rest(said.logits, pseudo, reduction="none"), weight),
        }

    def translation(self, batch: Batches) -> Terms:
        """L_G; gradients go through D, not into it."""
        pseudo, weight, target = (batch["unlabeled"][name] for name in ("pseudo", "weight", "target"))
        images, made = self.translate(batch)
        constants = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        judged = functional_call(self.discriminator, constants, (made,))
        distance = (self.generator(made, pseudo) - images).abs().flatten(1).mean(1)
        return {
            "adversarial": -judged.realness.mean(),
            "class": one_versus_rest(judged.logits, target),
            "own_class": one_versus_rest(self.generator(made), target),
            "cycle": Mean.of(distance, weight).times(self.lambda_rec),
        }

    def classifier(self, batch: Batches) -> Terms:
        """L_C."""
        with torch.no_grad():
            _, made = self.translate(batch)
        return {"class": one_versus_rest(self.student(made).logits, batch["unlabeled"]["target"])}

    def after_update(self, batch: Batch) -> None:
        """Count."""
        self.updates += 1

    def teachers(self) -> dict[str, Frozen]:
        """Copies of D, and of the ensemble of C and D, measured at the end; none before training."""
        if not int(self.updates):
            return {}
        student, critic = copy.deepcopy((self.student, self.discriminator))
        return {"discriminator": Frozen(critic), "ensemble": Frozen(Ensemble([student, critic]))}
