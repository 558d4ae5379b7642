"""An encoder with a projection head: what learns representations without labels."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from limbeck.models.build import build_inner
from limbeck.models.classifier import Classifier, ClassifierOutput, ImageTask
from limbeck.models.heads import ContrastiveHead, ProjectionHead, num_features
from limbeck.models.model import Model


class Projector(Model):
    """The body of a classifier up to its features, and a head on them that training needs and nobody later.

    Args:
        spec: what the encoder was built for.
        encoder: a classifier, not copied; its classification head is not used and does not train.
        head: on its features.
    """

    task: ClassVar[str] = "representation"

    def __init__(self, spec: ImageTask, encoder: Classifier, head: ProjectionHead | ContrastiveHead) -> None:
        super().__init__(spec)
        self.encoder, self.head = encoder, head
        assert encoder.head is not None
        encoder.body.get_submodule(encoder.head).requires_grad_(False)

    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> ClassifierOutput:
        """Outputs of the head [B, outputs] as logits, and the features [B, D] that it was given."""
        features = self.encoder(batch).features
        return ClassifierOutput(self.head(features), features)


def project(encoder: Classifier, task: ImageTask, *, outputs: int | None = 65_536, **options: Any) -> Projector:
    """Put a fresh :class:`~limbeck.models.heads.ProjectionHead` on a classifier's features.

    Args:
        encoder: not copied.
        task: what it was built for.
        outputs: of the head; None for as many as there are features.
        options: of the head.

    Raises:
        LimbeckError: no classification head was found, whose inputs are the features; or as of the head.
    """
    inputs = num_features(encoder, "a projection head")
    made = Projector(task, encoder, ProjectionHead(inputs, inputs if outputs is None else outputs, **options))
    if encoder.factory is not None:
        block = {"name": encoder.factory, **encoder.arguments}
        made.factory, made.arguments = "projector", {"encoder": block, "outputs": outputs, **options}
    return made


def projector(
    task: ImageTask,
    *,
    encoder: dict[str, Any],
    outputs: int | None = 65_536,
    hidden: int = 2048,
    layers: int = 2,
    bottleneck: int | None = 256,
    normalize_last: bool = True,
) -> Projector:
    """An encoder with the projection head of DINO.

    Args:
        task: Classes and images.
        encoder: The network, a model block such as {name: cnn, width: 16}.
        outputs: Of the head; null for as many as there are features.
        hidden: Units of each hidden layer of the head.
        layers: Hidden layers of the head.
        bottleneck: Units of the L2-normalised bottleneck; null for none.
        normalize_last: Whether the rows of the last layer have length 1.

    Raises:
        LimbeckError: the encoder is not one of limbeck's builders, or no classifier with a known head.
    """
    return project(
        build_inner(encoder, task, "projector"),
        task,
        outputs=outputs,
        hidden=hidden,
        layers=layers,
        bottleneck=bottleneck,
        normalize_last=normalize_last,
    )


def project_contrastively(
    encoder: Classifier, task: ImageTask, *, layers: int = 3, outputs: int = 128, batch_norm: bool = True
) -> Projector:
    """Put a fresh :class:`~limbeck.models.heads.ContrastiveHead` on a classifier's features.

    Args:
        encoder: not copied.
        task: what it was built for.
        layers: of the head.
        outputs: of the head.
        batch_norm: of the head.

    Raises:
        LimbeckError: no classification head was found, whose inputs are the features; or as of the head.
    """
    inputs = num_features(encoder, "a projection head")
    made = Projector(task, encoder, ContrastiveHead(inputs, outputs, layers=layers, batch_norm=batch_norm))
    if encoder.factory is not None:
        block = {"name": encoder.factory, **encoder.arguments}
        made.factory = "contrastive_projector"
        made.arguments = {"encoder": block, "layers": layers, "outputs": outputs, "batch_norm": batch_norm}
    return made


def contrastive_projector(
    task: ImageTask, *, encoder: dict[str, Any], layers: int = 3, outputs: int = 128, batch_norm: bool = True
) -> Projector:
    """An encoder with the projection head of SimCLR.

    Args:
        task: Classes and images.
        encoder: The network, a model block such as {name: cnn, width: 16}.
        layers: Linear layers of the head; all but the last are as wide as the features.
        outputs: Of the last layer.
        batch_norm: Whether each layer is normalised.

    Raises:
        LimbeckError: the encoder is not one of limbeck's builders, or no classifier with a known head.
    """
    network = build_inner(encoder, task, "contrastive_projector")
    return project_contrastively(network, task, layers=layers, outputs=outputs, batch_norm=batch_norm)
