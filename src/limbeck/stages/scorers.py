"""What a :class:`~limbeck.stages.score.Score` may ask about samples: embeddings of several views, losses."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.data import views as view_functions
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy
from limbeck.stages.score import Table


class Embeddings(nn.Module):
    """``embedding`` [B, D], of length 1: outputs of a network for the image itself, or the mean over augmented views.

    Args:
        model: gives a :class:`~limbeck.models.classifier.ClassifierOutput`, whose logits are embedded.
        views: how many views of each image; 0 for the image as it is.
        view: name of the views.
        seed: of the views.
        flip: whether they may mirror.

    Raises:
        LimbeckError: fewer than no views, or no such view.
    """

    def __init__(self, model: nn.Module, views: int = 0, view: str = "none", seed: int = 0, flip: bool = False) -> None:
        super().__init__()
        if views < 0:
            raise LimbeckError(f"views is {views}; it is a number of views, 0 for the image as it is")
        view_functions.check(view)
        self.model, self.views, self.view, self.seed, self.flip = model, views, view, seed, flip

    def forward(self, batch: Mapping[str, Tensor]) -> Table:
        """The column of a batch."""
        image = batch["image"]
        total = torch.zeros((), device=image.device)
        for seen in self._seen(image, batch["index"].cpu()):
            total = total + self.embed(seen.to(image.device))
        return {"embedding": F.normalize(total, dim=-1)}

    def embed(self, images: Tensor) -> Tensor:
        """What is averaged: outputs of length 1."""
        return F.normalize(self.model({"image": images}).logits.float(), dim=-1)

    def _seen(self, images: Tensor, indices: Tensor) -> Iterator[Tensor]:
        if self.views == 0:
            yield images
        for number in range(self.views):
            epochs = torch.full_like(indices, number)
            yield view_functions.apply(
                self.view, images.cpu(), seed=self.seed, epochs=epochs, indices=indices, flip=self.flip
            )


class FeatureEmbeddings(Embeddings):
    """``embedding`` [B, D], of length 1, of the features, which count in the mean over views by their length.

    The model gives a table with ``features``, as :class:`~limbeck.stages.score.Outputs` does.
    """

    def embed(self, images: Tensor) -> Tensor:
        """Features as they are."""
        features: Tensor = self.model({"image": images})["features"]
        return features.float()


class Losses(nn.Module):
    """``loss`` [B]: cross-entropy of every sample with the label that it has.

    Args:
        model: a classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor]) -> Table:
        """The column of a batch."""
        logits = self.model({"image": batch["image"]}).logits
        return {"loss": cross_entropy(logits, batch["label"], reduction="none")}
