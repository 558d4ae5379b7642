"""Several sets of images in one forward pass."""

import torch
from torch import Tensor

from limbeck.models.classifier import Classifier, ClassifierOutput
from limbeck.models.projector import Projector


def joint_forward(model: Classifier | Projector, *images: Tensor) -> list[ClassifierOutput]:
    """The outputs of each set of images, [B_i, C, H, W], from one pass: they share the statistics of the batch."""
    sizes = [len(part) for part in images]
    output = model({"image": torch.cat(images)})
    features = [None] * len(sizes) if output.features is None else output.features.split(sizes)
    return [ClassifierOutput(*parts) for parts in zip(output.logits.split(sizes), features, strict=True)]
