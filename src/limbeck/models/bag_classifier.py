"""Classifiers of bags of images: an encoder of single images and a pooling."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from limbeck.data.instance_bags import spread
from limbeck.errors import LimbeckError
from limbeck.models.build import build_inner
from limbeck.models.classifier import Classifier, ImageTask
from limbeck.models.heads import num_features
from limbeck.models.model import Model
from limbeck.models.pooling import AttentionPooling, InstancePooling, Pooled, Pooling


class BagClassifier(Model):
    """Says of a bag of images whether it is positive, and of each image how much it is.

    Only images that are there go through the encoder: filling up bags changes no statistics of batch normalisation.

    Args:
        spec: what the encoder was built for; two classes, negative and positive.
        encoder: a classifier of single images, not copied. Where attention pools its features its own head is not
            used, and does not train.
        pooling: from instances to bags.

    Raises:
        LimbeckError: another number of classes than two.
    """

    task: ClassVar[str] = "instance_bags"

    def __init__(self, spec: ImageTask, encoder: Classifier, pooling: InstancePooling | AttentionPooling) -> None:
        super().__init__(spec)
        if len(spec.classes) != 2:
            raise LimbeckError(f"a bag is negative or positive: 2 classes, not the {len(spec.classes)} {spec.classes}")
        self.encoder, self.pooling = encoder, pooling
        if isinstance(pooling, AttentionPooling):
            assert encoder.head is not None
            encoder.body.get_submodule(encoder.head).requires_grad_(False)

    def forward(self, batch: Mapping[str, Tensor]) -> Pooled:
        """Logits of the bags [B, 2] and scores of their instances [B, M].

        Args:
            batch: ``image`` [B, M, C, H, W] in [0, 1] and ``mask`` bool [B, M], true where there is an image.

        Raises:
            LimbeckError: a batch that holds no bags.
        """
        if "mask" not in batch or batch["image"].ndim != 5:
            raise LimbeckError(f"the batch holds no bags (image [B, M, C, H, W] and mask [B, M]), only {sorted(batch)}")
        mask = batch["mask"]
        said = self.encoder(batch["image"][mask])
        features = None if said.features is None else spread(said.features, mask)
        found: Pooled = self.pooling(spread(said.logits, mask), features, mask)
        return found


def classify_bags(encoder: Classifier, pooling: Pooling, *, hidden: int = 128, gated: bool = True) -> BagClassifier:
    """A classifier of bags around a classifier of images.

    Args:
        encoder: not copied; of two classes, negative and positive.
        pooling: mean or max of the instances' probabilities, or attention.
        hidden: of the attention.
        gated: whether the attention has a gate.

    Raises:
        LimbeckError: another number of classes, an unknown pooling, an encoder without a fixed size of images, or,
            for attention, without a known classification head.
    """
    if encoder.size is None:
        raise LimbeckError("a bag classifier needs an encoder of a fixed size: Classifier(..., size=SIZE)")
    task = ImageTask(encoder.classes, encoder.channels, encoder.size, encoder.mean, encoder.std)
    made = BagClassifier(
        task,
        encoder,
        AttentionPooling(num_features(encoder, "attention pooling"), hidden, gated)
        if pooling == "attention"
        else InstancePooling(pooling),
    )
    if encoder.factory is not None:
        block = {"name": encoder.factory, **encoder.arguments}
        made.factory = "bag_classifier"
        made.arguments = {"model": block, "pooling": pooling, "hidden": hidden, "gated": gated}
    return made


def bag_classifier(
    task: ImageTask, *, model: dict[str, Any], pooling: Pooling = "max", hidden: int = 128, gated: bool = True
) -> BagClassifier:
    """A network of single images whose answers are pooled to one for a bag.

    Args:
        task: Classes (negative, positive) and images.
        model: The network of single images, a model block such as {name: cnn, width: 16}.
        pooling: mean or max of the instances' probabilities, or attention over their features.
        hidden: Hidden units of the attention.
        gated: Whether the attention has a gate.

    Raises:
        LimbeckError: as of :func:`classify_bags`, or the model is not one of limbeck's classifiers.
    """
    return classify_bags(build_inner(model, task, "bag_classifier"), pooling, hidden=hidden, gated=gated)
