"""Tip-Adapter: a cache of few labelled images beside a classifier that is there already."""

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor

from limbeck.data.samples import ImageData, Samples
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy
from limbeck.losses.reduction import Mean
from limbeck.methods.method import Method, sketch
from limbeck.metrics.interpolation import search_pair
from limbeck.models.cached import CacheHead, cache_of, with_cache
from limbeck.models.classifier import Classifier
from limbeck.models.model import Model
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.score import Outputs, Score, score
from limbeck.stages.scorers import FeatureEmbeddings
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program

ALPHAS = tuple(0.1 + number * (3 - 0.1) / 20 for number in range(20))
BETAS = tuple(0.1 + number * (7 - 0.1) / 200 for number in range(200))


class CacheTuning(Objective):
    """Cross-entropy of the labelled images; nothing but the keys of the cache learns, and the network is in eval mode.

    Args:
        student: with a cache, whose alpha and beta are those of the training.
        search: whether the student answers with others, see :class:`TipAdapter`.
    """

    student: Classifier
    progress: ClassVar[tuple[str, str]] = ("accuracy", "higher")

    def __init__(self, student: Classifier, search: bool) -> None:
        super().__init__()
        self.student = student.requires_grad_(False)
        self.cache.keys.requires_grad_()
        self.alpha, self.beta, self.search = float(self.cache.alpha), float(self.cache.beta), search
        self.changed = False

    @property
    def cache(self) -> CacheHead:
        """The student's head."""
        return cache_of(self.student)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    def streams(self, data: ImageData, batch_size: int, seed: int) -> dict[str, Stream] | Stream:
        """The labelled images in their training view."""
        self._data = data
        return super().streams(data, batch_size, seed)

    def terms(self, batch: Batch) -> Terms:
        """Cross-entropy with the alpha and beta of the training."""
        logits = self.cache.answer(self.student(batch).features, self.alpha, self.beta)
        labelled = batch["label"] >= 0
        return {"ce": Mean.of(cross_entropy(logits, batch["label"], weight=labelled, reduction="none"), labelled)}

    def after_update(self, batch: Batch) -> None:
        """The pair was chosen for other keys."""
        self.changed = True

    def trained(self) -> Classifier:
        """The student, with a pair that was chosen for the keys it has."""
        if self.changed and self.search:
            samples, cache = self._data.validation, self.cache
            features = self.features(samples)
            with torch.no_grad():
                own, affinity = cache.head(features), cache.affinity(features)

                def answer(beta: float) -> Callable[[float], Tensor]:
                    votes = cache.votes(affinity, beta)
                    return lambda alpha: own + alpha * votes

                chosen = search_pair(answer, samples.labels.to(own.device), ALPHAS, BETAS)
            cache.set_answer(chosen.alpha, chosen.beta)
        self.changed = False
        return self.student

    def features(self, samples: Samples) -> Tensor:
        """Of every sample as it is, [N, D]."""
        return score(Outputs(self.student, ["features"]), samples)["features"].to(self.cache.keys.device)

    def summary(self) -> dict[str, float]:
        """The pair that the student answers with, and the test accuracy of the network without its cache."""
        with torch.no_grad():
            said = self.cache.head(self.features(self._data.test)).argmax(-1).cpu()
        right = (said == self._data.test.labels).double().mean()
        return {"alpha": float(self.cache.alpha), "beta": float(self.cache.beta), "network/accuracy": float(right)}


class TipAdapter:
    """The classes of the labelled images that an image is like are added to what a classifier says of it.

    Source: Zhang, Zhang, Fang, Gao, Li, Dai, Qiao, Li, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot
    Classification", arXiv 2207.09519 (2022); all numbers from memory. It is the few-shot teacher of DHO (arXiv
    2505.07675), whose code the equation is of. With features v of a frozen network, its logits h(v) (of CLIP
    100 W v / |v|), keys k_i and labels y_i of the labelled images,

        logits = h(v) + alpha sum_i exp(-beta (1 - k_i v / |v|)) onehot(y_i),     k_i = normalise(mean of v over views).

    Then the keys are trained (Tip-Adapter-F) by cross-entropy with the given alpha and beta; with a learning rate of 0
    (``fit.optimizer.lr``) they stay (Tip-Adapter, which trains nothing). After it, and whenever accuracy on the
    validation data is measured, alpha of 20 in [0.1, 3) and beta of 200 in [0.1, 7) are chosen there (of equally good
    pairs the smaller beta, then the smaller alpha), as the released code does for ImageNet, but never on test data.

    Args:
        data: whose labelled training images are cached, seen in their training view.
        network: a classifier of these classes: a saved one, CLIP, or a method that trains one.
        fit: of the keys (paper: AdamW 1e-3 with eps 1e-4, batches of 256, 20 epochs, cosine).
        alpha: weight of the cache in training.
        beta: its sharpness in training.
        views: views of an image that its key is the mean of; 0 for the image as it is.
        search: whether the pair that answers is chosen on the validation data; otherwise it is that of the training.
    """

    def __init__(
        self,
        data: ImageData,
        network: Method,
        fit: FitSettings,
        alpha: float = 1.0,
        beta: float = 5.5,
        views: int = 10,
        search: bool = True,
    ) -> None:
        if not alpha >= 0 or not beta > 0 or views < 0:
            raise LimbeckError(
                f"alpha is {alpha}, beta {beta} and views {views}; they must be at least 0, above 0 and at least 0"
            )
        self.data, self.network, self.fit = data, network, fit
        self.alpha, self.beta, self.views, self.search = alpha, beta, views, search

    def program(self) -> Program:
        """Train the network where need be, fill the cache, and train its keys."""
        self.sketch()  # a network that will not do is refused before it is trained
        network = self.checked((yield from self.network.program()))
        labelled = self.data.train.subset((self.data.train.labels >= 0).nonzero()[:, 0])
        seed = int(torch.randint(2**62, ()))
        scorer = FeatureEmbeddings(Outputs(network, ["features"]), self.views, self.data.view, seed, self.data.flip)
        keys = (yield Score("cache", scorer, labelled, self.fit))["embedding"]
        student = with_cache(network, keys, labelled.labels, self.alpha, self.beta)
        return (yield Fit("fit", CacheTuning(student, self.search), self.data, self.fit))

    def sketch(self) -> Model | None:
        """What the program would return, without its cache; see :func:`limbeck.methods.method.sketch`."""
        network = sketch(self.network)
        return None if network is None else self.checked(network)

    def checked(self, network: Model) -> Classifier:
        """The network.

        Raises:
            LimbeckError: it is no classifier of these classes.
        """
        if not isinstance(network, Classifier) or network.classes != self.data.classes:
            what = f"one of {network.classes}" if isinstance(network, Classifier) else f"a {type(network).__name__}"
            raise LimbeckError(f"tip-adapter needs a classifier of {self.data.classes}, and network is {what}")
        return network
