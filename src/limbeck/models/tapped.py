"""A classifier that goes on with the first layers of a projection head (SimCLR v2, arXiv 2006.10029, section 2)."""

from typing import Any

from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models.build import build_inner
from limbeck.models.classifier import Classifier, ImageTask
from limbeck.models.heads import ContrastiveHead, exchange_head
from limbeck.models.projector import Projector, project_contrastively


def tap(projector: Projector, selector: int) -> Classifier:
    """A linear classifier, all zeros at first, on what comes out of a layer of the projection head.

    Args:
        projector: with a :class:`~limbeck.models.heads.ContrastiveHead`; not copied: encoder and layers are the
            classifier's from then on.
        selector: how many layers of the head are kept; 0 classifies the features of the encoder.

    Returns:
        A classifier of the encoder's classes; its features are the outputs of the last layer that is kept.

    Raises:
        LimbeckError: another kind of head, not so many layers, or an encoder whose own head is a convolution.
    """
    encoder, head = projector.encoder, projector.head
    if not isinstance(head, ContrastiveHead):
        raise LimbeckError(f"layers are kept of a ContrastiveHead, and the projector has a {type(head).__name__}")
    if not 0 <= selector <= len(head.layers):
        raise LimbeckError(f"selector is {selector}; the head has {len(head.layers)} layers, so 0 to all of them")
    assert encoder.head is not None
    old = encoder.body.get_submodule(encoder.head)
    if not isinstance(old, nn.Linear):
        raise LimbeckError(
            f"{encoder.head} is a convolution; layers are put in the place of a linear classification head"
        )
    classifier = nn.Linear(head.widths[selector], len(encoder.classes))
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    kept = nn.Sequential(*head.layers[:selector], classifier).to(old.weight.device, old.weight.dtype)
    made = exchange_head(encoder, kept, encoder.classes, last=str(selector))
    if projector.factory is not None:
        made.factory, made.arguments = "tapped", {**projector.arguments, "selector": selector}
    return made


def tapped(
    task: ImageTask,
    *,
    encoder: dict[str, Any],
    layers: int = 3,
    outputs: int = 128,
    batch_norm: bool = True,
    selector: int = 1,
) -> Classifier:
    """A network whose classifier follows the first layers of SimCLR's projection head.

    Args:
        task: Classes and images.
        encoder: The network, a model block such as {name: cnn, width: 16}.
        layers: Linear layers of the whole head.
        outputs: Of the head's last layer.
        batch_norm: Whether each layer is normalised.
        selector: How many layers of the head are kept.

    Raises:
        LimbeckError: the encoder is not one of limbeck's builders, or no classifier with a linear head.
    """
    network = build_inner(encoder, task, "tapped")
    return tap(project_contrastively(network, task, layers=layers, outputs=outputs, batch_norm=batch_norm), selector)
