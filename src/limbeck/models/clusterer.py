"""A network that sorts images into clusters which nobody has named."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.build import build_inner
from limbeck.models.classifier import Classifier, ClassifierOutput, ImageTask
from limbeck.models.heads import CosineHead, num_features
from limbeck.models.model import Model


class Clusterer(Model):
    """The body of a classifier up to its features, and cosine heads with one output a cluster.

    Several heads are several clusterings of the same features, of which one is used in the end.

    Args:
        spec: what the encoder was built for.
        encoder: a classifier, not copied; its classification head is not used and does not train.
        heads: on its features.
    """

    task: ClassVar[str] = "clustering"
    chosen: Tensor

    def __init__(self, spec: ImageTask, encoder: Classifier, heads: list[CosineHead]) -> None:
        super().__init__(spec)
        self.encoder, self.heads = encoder, nn.ModuleList(heads)
        assert encoder.head is not None
        encoder.body.get_submodule(encoder.head).requires_grad_(False)
        self.register_buffer("chosen", torch.zeros((), dtype=torch.int64))

    @property
    def clusters(self) -> int:
        """Outputs of each head."""
        head = self.heads[0]
        assert isinstance(head, CosineHead)
        return len(head.weight)

    def every(self, batch: Mapping[str, Tensor] | Tensor) -> Tensor:
        """The logits of every head, [B, heads, clusters]."""
        return self._logits(self.encoder(batch).features)

    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> ClassifierOutput:
        """The logits [B, clusters] of the chosen head, and the features [B, D]."""
        features = self.encoder(batch).features
        return ClassifierOutput(self._logits(features).index_select(1, self.chosen.reshape(1)).squeeze(1), features)

    def _logits(self, features: Tensor | None) -> Tensor:
        return torch.stack([head(features) for head in self.heads], dim=1)


def cluster(encoder: Classifier, task: ImageTask, *, clusters: int, heads: int = 1, scale: float = 10.0) -> Clusterer:
    """Put fresh cosine heads on a classifier's features.

    Args:
        encoder: not copied.
        task: what it was built for.
        clusters: outputs of each head.
        heads: how many.
        scale: of the cosines.

    Raises:
        LimbeckError: fewer than two clusters, no heads, a scale that is not positive, or no classification head was
            found, whose inputs are the features.
    """
    if clusters < 2 or heads < 1:
        raise LimbeckError(f"{clusters} clusters and {heads} heads: expected at least two clusters and one head")
    inputs = num_features(encoder, "a clustering head")
    made = Clusterer(task, encoder, [CosineHead(inputs, clusters, scale) for _ in range(heads)])
    if encoder.factory is not None:
        block = {"name": encoder.factory, **encoder.arguments}
        made.factory = "clusterer"
        made.arguments = {"encoder": block, "clusters": clusters, "heads": heads, "scale": scale}
    return made


def clusterer(
    task: ImageTask, *, encoder: dict[str, Any], clusters: int, heads: int = 1, scale: float = 10.0
) -> Clusterer:
    """An encoder with cosine heads, one output a cluster.

    Args:
        task: Images; its classes are only those that clusters are compared with.
        encoder: The network, a model block such as {name: cnn, width: 16}.
        clusters: Outputs of each head.
        heads: How many heads; one is used in the end.
        scale: Of the cosines.

    Raises:
        LimbeckError: the encoder is not one of limbeck's builders, or no classifier with a known head.
    """
    return cluster(build_inner(encoder, task, "clusterer"), task, clusters=clusters, heads=heads, scale=scale)
