"""Small networks for small images: what two CPU cores can train."""

import math
from typing import Literal

from torch import nn

from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier, ImageTask
from limbeck.models.experts import Branches, ExpertClassifier, expert_names
from limbeck.models.heads import CosineHead

Norm = Literal["batch", "group", "none"]

VGG11 = [[64], [128], [256, 256], [512, 512], [512, 512]]
"""Channels of the convolutions of VGG-11 (arXiv 1409.1556, table 1), block by block."""


def cnn(task: ImageTask, *, width: int = 16, norm: Norm = "batch", dropout: float = 0.0) -> Classifier:
    """Convolutional network for images of 8x8 to 64x64: two blocks and a hidden layer of 64.

    Args:
        task: Classes and images.
        width: Channels of the first block; the second has twice as many.
        norm: Normalisation after each convolution; "group" and "none" keep no batch statistics.
        dropout: Fraction of the convolutional features dropped before the hidden layer.

    Raises:
        LimbeckError: images below 4x4, or options out of range.
    """
    height, columns = task.size
    if min(task.size) < 4:
        raise LimbeckError(f"cnn halves the image twice and needs at least 4x4 pixels, got {height}x{columns}")
    _check_positive("cnn", width=width)
    _check_dropout("cnn", dropout)
    body = nn.Sequential(
        _block(task.channels, width, norm),
        _block(width, 2 * width, norm),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * width * (height // 4) * (columns // 4), 64),
        nn.ReLU(),
        nn.Linear(64, len(task.classes)),
    )
    return Classifier(body, task.classes, channels=task.channels, size=task.size, mean=task.mean, std=task.std)


def expert_cnn(
    task: ImageTask,
    *,
    width: int = 16,
    experts: int = 3,
    hidden: int = 64,
    norm: Norm = "batch",
    scale: float = 30.0,
) -> ExpertClassifier:
    """The convolutional network of ``cnn`` with a first block that several experts share; the rest is their own.

    Args:
        task: Classes and images.
        width: Channels of the first block; the second, of each expert, has twice as many.
        experts: How many; 1 is a single network with a cosine classifier.
        hidden: Units of each expert's hidden layer.
        norm: Normalisation after each convolution; "group" and "none" keep no batch statistics.
        scale: Of the cosine classifiers: logits lie between -scale and scale.

    Raises:
        LimbeckError: images below 4x4, or options out of range.
    """
    names = expert_names(experts, "expert_cnn")
    if min(task.size) < 4:
        raise LimbeckError(f"expert_cnn halves the image twice and needs at least 4x4 pixels, got {list(task.size)}")
    _check_positive("expert_cnn", width=width, hidden=hidden)
    places = (task.size[0] // 4) * (task.size[1] // 4)
    body = Branches(
        _block(task.channels, width, norm),
        [
            nn.Sequential(
                _block(width, 2 * width, norm), nn.Flatten(), nn.Linear(2 * width * places, hidden), nn.ReLU()
            )
            for _ in names
        ],
        [CosineHead(hidden, len(task.classes), scale) for _ in names],
    )
    pixels = {"channels": task.channels, "size": task.size, "mean": task.mean, "std": task.std}
    return ExpertClassifier(body, task.classes, names, **pixels)


def vgg(task: ImageTask, *, blocks: list[list[int]] = VGG11, norm: Norm = "none") -> Classifier:
    """Plain convolutions 3x3 with a pooling after each block, then the mean over what is left of the image.

    Args:
        task: Classes and images.
        blocks: Channels of the convolutions, block by block; the last number is that of the features. Default: VGG-11.
        norm: Normalisation after each convolution.

    Raises:
        LimbeckError: no blocks, an empty one, or options out of range.
    """
    if not blocks or not all(blocks):
        raise LimbeckError(f"vgg: blocks must be lists of channels, got {blocks}")
    modules: list[nn.Module] = []
    inputs, side = task.channels, min(task.size)
    for block in blocks:
        for outputs in block:
            _check_positive("vgg", channels=outputs)
            modules += _convolution(inputs, outputs, norm)
            inputs = outputs
        if side >= 2:  # of a small image nothing is left to pool in the last blocks
            modules.append(nn.MaxPool2d(2))
            side //= 2
    body = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, len(task.classes)))
    return Classifier(body, task.classes, channels=task.channels, size=task.size, mean=task.mean, std=task.std)


def mlp(task: ImageTask, *, hidden: int = 128, layers: int = 2, center: bool = False) -> Classifier:
    """Multi-layer perceptron on the pixels.

    Args:
        task: Classes and images.
        hidden: Units of each hidden layer.
        layers: Hidden layers; 0 is a linear classifier.
        center: Whether the features, which a ReLU leaves in one corner, are brought to mean 0 and variance 1.

    Raises:
        LimbeckError: options out of range.
    """
    _check_positive("mlp", hidden=hidden)
    if layers < 0:
        raise LimbeckError(f"mlp: layers must be 0 or more, got {layers}")
    inputs = task.channels * math.prod(task.size)
    modules: list[nn.Module] = [nn.Flatten()]
    for _ in range(layers):
        modules += [nn.Linear(inputs, hidden), nn.ReLU()]
        inputs = hidden
    if center:
        modules.append(nn.BatchNorm1d(inputs, affine=False))
    body = nn.Sequential(*modules, nn.Linear(inputs, len(task.classes)))
    return Classifier(body, task.classes, channels=task.channels, size=task.size, mean=task.mean, std=task.std)


def _block(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    """Convolution, normalisation, ReLU, and a pooling that halves the image."""
    return nn.Sequential(*_convolution(inputs, outputs, norm), nn.MaxPool2d(2))


def _convolution(inputs: int, outputs: int, norm: Norm) -> list[nn.Module]:
    norms: dict[str, nn.Module] = {
        "batch": nn.BatchNorm2d(outputs),
        "group": nn.GroupNorm(math.gcd(8, outputs), outputs),
        "none": nn.Identity(),
    }
    if norm not in norms:
        raise LimbeckError(f"norm must be one of {sorted(norms)}, got {norm!r}")
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=norm == "none")
    return [convolution, norms[norm], nn.ReLU()]


def _check_positive(name: str, **values: int) -> None:
    for key, value in values.items():
        if value < 1:
            raise LimbeckError(f"{name}: {key} must be 1 or more, got {value}")


def _check_dropout(name: str, dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise LimbeckError(f"{name}: dropout must be in [0, 1), got {dropout}")
