"""Further heads on the features of a model, which training needs and the finished model does not."""

from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier


def mlp_head(inputs: int, outputs: int, *, hidden: int, layers: int = 2, slope: float = 0.0) -> nn.Sequential:
    """``layers`` times a linear layer, batch normalisation and a ReLU, then a linear layer.

    Args:
        inputs: features.
        outputs: classes, or dimensions of an embedding.
        hidden: units of each hidden layer.
        layers: hidden layers; 0 is a linear head.
        slope: of the (leaky) ReLU below 0.

    Raises:
        LimbeckError: sizes below one.
    """
    if min(inputs, outputs, hidden) < 1 or layers < 0:
        raise LimbeckError(f"a head of {inputs} inputs, {layers} layers of {hidden} and {outputs} outputs is empty")
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(slope)]
        inputs = hidden
    return nn.Sequential(*modules, nn.Linear(inputs, outputs))


def num_features(model: Classifier, method: str) -> int:
    """Size of the features that a classifier gives: the inputs of its classification head.

    Args:
        model: the classifier.
        method: what needs the features, for the message.

    Raises:
        LimbeckError: no head was found.
    """
    head = None if model.head is None else model.body.get_submodule(model.head)
    if isinstance(head, nn.Linear):
        return head.in_features
    if isinstance(head, nn.Conv2d):
        return head.in_channels
    raise LimbeckError(
        f"{method} needs the features of its student, but in {type(model.body).__name__} no classification head was "
        "found (a linear layer or 1x1 convolution with one output a class); name it: Classifier(..., head=NAME)"
    )
