"""A cache of labelled samples beside a network's own head."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.build import build_inner
from limbeck.models.classifier import Classifier, ImageTask
from limbeck.models.heads import exchange_head


class CacheHead(nn.Module):
    """``h(v) + alpha exp(-beta (1 - v K^T / |v|)) L`` (Tip-Adapter, arXiv 2207.09519).

    What is like a sample of the cache is more probably of its class. alpha and beta are buffers: they are chosen, not
    learnt, and saved with the weights.

    Args:
        head: h, the network's own head, from features [B, D] to logits [B, C].
        keys: K, directions of the features of N samples [N, D]; as a parameter they may turn and grow.
        labels: classes of the samples, int64 [N]; L are their one-hot rows.
        num_classes: C.
        alpha: weight of the cache.
        beta: how soon samples that are less alike count for nothing.
    """

    labels: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(
        self, head: nn.Module, keys: Tensor, labels: Tensor, num_classes: int, alpha: float, beta: float
    ) -> None:
        super().__init__()
        self.head, self.num_classes = head, num_classes
        self.keys = nn.Parameter(keys.clone())
        self.register_buffer("labels", labels.clone())
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, D] to logits [B, C]."""
        return self.answer(features, self.alpha, self.beta)

    def answer(self, features: Tensor, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
        """Logits [B, C] with another weight and sharpness."""
        logits: Tensor = self.head(features) + alpha * self.votes(self.affinity(features), beta)
        return logits

    def affinity(self, features: Tensor) -> Tensor:
        """Cosines (of keys that have kept their length) of features [B, D] with each key, float32 [B, N]."""
        return F.normalize(features.float(), dim=-1) @ self.keys.float().T

    def votes(self, affinity: Tensor, beta: float | Tensor) -> Tensor:
        """What the cache alone says, [B, C], for an affinity [B, N]."""
        return (beta * (affinity - 1)).exp() @ F.one_hot(self.labels, self.num_classes).to(affinity)

    @torch.no_grad()
    def set_answer(self, alpha: float, beta: float) -> None:
        """Choose weight and sharpness."""
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)


def cache_of(model: Classifier) -> CacheHead:
    """The cache of a classifier that :func:`with_cache` or :func:`cached` made."""
    assert model.head is not None
    head = model.body.get_submodule(model.head)
    assert isinstance(head, CacheHead)
    return head


def with_cache(
    model: Classifier, features: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 5.5
) -> Classifier:
    """A classifier that asks labelled samples too; its body is not copied.

    Args:
        model: keeps its head, within the new one.
        features: of the samples, [N, D]; brought to length 1.
        labels: their classes, as the model numbers them, int64 [N].
        alpha: weight of the cache.
        beta: its sharpness.

    Raises:
        LimbeckError: no head was found, or one that does not take features [B, D]; or there are no samples.
    """
    old = None if model.head is None else model.body.get_submodule(model.head)
    if old is None or isinstance(old, nn.Conv2d):
        raise LimbeckError(
            f"a cache needs a classification head on features [B, D], and {type(model.body).__name__} has "
            f"{'none that is known' if old is None else old}; name it: Classifier(..., head=NAME)"
        )
    if not len(features):
        raise LimbeckError("a cache of no samples says nothing")
    inner = None if model.factory is None else {"name": model.factory, **model.arguments}
    keys = F.normalize(features.float(), dim=-1)
    made = exchange_head(model, CacheHead(old, keys, labels, len(model.classes), alpha, beta), model.classes)
    if inner is not None:
        made.factory, made.arguments = "cached", {"model": inner, "samples": len(keys), "features": keys.shape[1]}
    return made


def cached(task: ImageTask, *, model: dict[str, Any], samples: int, features: int) -> Classifier:
    """A network with an empty cache beside its head: what a saved one is read into.

    Args:
        task: Classes and images.
        model: The network, a model block such as {name: cnn, width: 16}.
        samples: How many the cache holds.
        features: Size of the network's features.

    Raises:
        LimbeckError: the model is not one of limbeck's builders, or has no head for a cache.
    """
    nothing = torch.zeros(samples, features)
    return with_cache(build_inner(model, task, "cached"), nothing, torch.zeros(samples, dtype=torch.int64))
