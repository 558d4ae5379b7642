"""Further heads on the features of a model, which training needs and the finished model does not."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class ProjectionHead(nn.Module):
    """The head of DINO (arXiv 2104.14294, appendix C): an MLP, an L2-normalised bottleneck, and a wide linear layer.

    ``layers`` times a linear layer and a GELU, a linear layer to the bottleneck, whose output is brought to length 1,
    and a linear layer without bias, whose rows are brought to length 1 where ``normalize_last`` says so: outputs are
    then cosines, in [-1, 1]. Weights are drawn from a normal distribution of standard deviation 0.02, cut off at
    -2 and 2; biases are 0.

    Args:
        inputs: features.
        outputs: of the last layer.
        hidden: units of each hidden layer.
        layers: hidden layers; 0 for none.
        bottleneck: units of the bottleneck; None leaves it and its normalisation out.
        normalize_last: whether the rows of the last layer have length 1.

    Raises:
        LimbeckError: sizes below one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int = 2048,
        layers: int = 2,
        bottleneck: int | None = 256,
        normalize_last: bool = True,
    ) -> None:
        super().__init__()
        if min(inputs, outputs, hidden, 1 if bottleneck is None else bottleneck) < 1 or layers < 0:
            raise LimbeckError(
                f"a projection head of {inputs} inputs, {layers} layers of {hidden}, a bottleneck of {bottleneck} and "
                f"{outputs} outputs is empty"
            )
        modules: list[nn.Module] = []
        for _ in range(layers):
            modules += [nn.Linear(inputs, hidden), nn.GELU()]
            inputs = hidden
        if bottleneck is not None:
            modules.append(nn.Linear(inputs, bottleneck))
            inputs = bottleneck
        self.mlp = nn.Sequential(*modules)
        self.last = nn.Linear(inputs, outputs, bias=False)
        self.bottleneck, self.normalize_last = bottleneck, normalize_last
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the first weights, from torch's global generator."""
        for part in (*self.mlp, self.last):
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, inputs] to outputs [B, outputs]."""
        hidden = self.mlp(features)
        if self.bottleneck is not None:
            hidden = F.normalize(hidden, dim=-1)
        weight = F.normalize(self.last.weight, dim=-1) if self.normalize_last else self.last.weight
        return F.linear(hidden, weight)


class CosineHead(nn.Module):
    """A classifier by angle: ``s cos(features, w_c)`` for each class c, without biases.

    All classes have weights of length 1, so that none is favoured by the length of its own, which grows with the
    number of its samples (arXiv 1809.00953; scaled as in LDAM, arXiv 1906.07413). Weights are drawn uniformly.

    Args:
        inputs: features.
        outputs: classes.
        scale: s > 0.

    Raises:
        LimbeckError: a scale that is not positive.
    """

    def __init__(self, inputs: int, outputs: int, scale: float = 30.0) -> None:
        super().__init__()
        if not scale > 0:
            raise LimbeckError(f"the scale of a cosine head is {scale}; it must be above 0")
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the first weights, from torch's global generator."""
        nn.init.uniform_(self.weight, -1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, inputs] to logits [B, outputs] in [-s, s]."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


class ContrastiveHead(nn.Module):
    """The head of SimCLR: linear layers, ReLUs between them, and outputs that a contrastive loss brings to length 1.

    Hidden layers are as wide as the features. SimCLR v2 (arXiv 2006.10029) has three layers with batch normalisation
    after each: then none has a bias, and the last normalisation no shift. Layers can be kept for a later training, see
    :func:`limbeck.models.tapped.tap`.

    Args:
        inputs: features.
        outputs: of the last layer.
        layers: linear layers.
        batch_norm: whether each is normalised.

    Raises:
        LimbeckError: sizes below one.
    """

    def __init__(self, inputs: int, outputs: int = 128, *, layers: int = 3, batch_norm: bool = True) -> None:
        super().__init__()
        if min(inputs, outputs, layers) < 1:
            raise LimbeckError(f"a head of {inputs} inputs, {layers} layers and {outputs} outputs is empty")
        self.layers = nn.ModuleList()
        self.widths = [*[inputs] * layers, outputs]
        for number in range(layers):
            width = self.widths[number + 1]
            parts: list[nn.Module] = [nn.Linear(inputs, width, bias=not batch_norm)]
            if batch_norm:
                parts.append(nn.BatchNorm1d(width))
            if number < layers - 1:
                parts.append(nn.ReLU())
            elif batch_norm:
                parts[-1].bias.requires_grad_(False)  # stays 0
            self.layers.append(nn.Sequential(*parts))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, inputs] to outputs [B, outputs]."""
        for layer in self.layers:
            features = layer(features)
        return features


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


def replace_head(model: Classifier, classes: Sequence[str]) -> Classifier:
    """A classifier with a fresh head for other classes, drawn from torch's global generator.

    Args:
        model: its body is not copied: it is the new classifier's from then on.
        classes: names of the new classes.

    Returns:
        A classifier of these classes with the preprocessing of ``model``.

    Raises:
        LimbeckError: no head was found.
    """
    inputs = num_features(model, "a new head")
    assert model.head is not None
    old = model.body.get_submodule(model.head)
    new: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Conv2d):
        new = nn.Conv2d(inputs, len(classes), kernel_size=1, bias=old.bias is not None)
    else:
        new = nn.Linear(inputs, len(classes), bias=old.bias is not None)
    weight = next(old.parameters())
    new.to(weight.device, weight.dtype)
    return exchange_head(model, new, classes)


def exchange_head(model: Classifier, head: nn.Module, classes: Sequence[str], last: str = "") -> Classifier:
    """A classifier with another module in the place of its classification head.

    Args:
        model: its body is not copied: it is the new classifier's from then on.
        head: takes the features of ``model``, gives logits of ``classes``.
        classes: their names.
        last: dotted name of the part of ``head`` whose input are the new features; all of it by default.

    Returns:
        A classifier of these classes with the preprocessing of ``model``.

    Raises:
        LimbeckError: no head was found that could be exchanged.
    """
    if model.head is None:
        raise LimbeckError(f"{type(model.body).__name__} has no known head; name it: Classifier(..., head=NAME)")
    model.release_head()
    parent, _, name = model.head.rpartition(".")
    if name:
        setattr(model.body.get_submodule(parent), name, head)
    return Classifier(
        model.body if name else head,
        classes,
        channels=model.channels,
        size=model.size,
        mean=model.mean,
        std=model.std,
        head=f"{model.head}.{last}".strip("."),
    )
