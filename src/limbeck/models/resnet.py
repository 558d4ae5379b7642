"""Residual networks for images of about 32x32, as the distillation literature uses them."""

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.classifier import Classifier, ImageTask
from limbeck.models.experts import Branches, ExpertClassifier, expert_names
from limbeck.models.heads import CosineHead


def resnet(task: ImageTask, *, depth: int = 20, width: int = 16) -> Classifier:
    """Residual network of He et al. for CIFAR (arXiv:1512.03385, section 4.2).

    Three stages of (depth - 2) / 6 blocks with width, 2 width and 4 width channels; shortcuts without
    parameters (strided, padded with zero channels).

    Args:
        task: Classes and images.
        depth: Layers with weights: 6 n + 2, that is 8, 14, 20, 32, 44, 56, 110 ...
        width: Channels of the first stage.

    Raises:
        LimbeckError: a depth that is not 6 n + 2, or no channels.
    """
    blocks = _blocks_per_stage("resnet", depth, offset=2)
    _check_width("resnet", "width", width)
    modules: list[nn.Module] = [_conv(task.channels, width), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage, outputs in enumerate((width, 2 * width, 4 * width)):
        modules += _stage(blocks, inputs, outputs, stride=2 if stage else 1)
        inputs = outputs
    return _classifier(task, modules, inputs)


def expert_resnet(
    task: ImageTask,
    *,
    depth: int = 32,
    width: int = 16,
    experts: int = 3,
    reduction: float = 0.75,
    scale: float = 30.0,
) -> ExpertClassifier:
    """The network of ``resnet`` with a first stage that several experts share, as RIDE (arXiv 2010.01809) and MDCS.

    Each expert has a second and third stage and a cosine classifier of its own.

    Args:
        task: Classes and images.
        depth: Layers with weights, of one expert: 6 n + 2, that is 8, 14, 20, 32 ...
        width: Channels of the first stage.
        experts: How many.
        reduction: Channels of the experts' stages, as a share of the 2 width and 4 width of a single network.
        scale: Of the cosine classifiers: logits lie between -scale and scale.

    Raises:
        LimbeckError: a depth that is not 6 n + 2, or options out of range.
    """
    blocks = _blocks_per_stage("expert_resnet", depth, offset=2)
    _check_width("expert_resnet", "width", width)
    names = expert_names(experts, "expert_resnet")
    second, third = (round(times * width * reduction) for times in (2, 4))
    if min(second, third) < width:
        raise LimbeckError(
            f"expert_resnet: reduction {reduction} leaves stages of {second} channels, fewer than {width}"
        )
    stem: list[nn.Module] = [_conv(task.channels, width), nn.BatchNorm2d(width), nn.ReLU()]
    body = Branches(
        nn.Sequential(*stem, *_stage(blocks, width, width, stride=1)),
        [
            nn.Sequential(
                *_stage(blocks, width, second, stride=2),
                *_stage(blocks, second, third, stride=2),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
            for _ in names
        ],
        [CosineHead(third, len(task.classes), scale) for _ in names],
    )
    _initialise(body)
    pixels = {"channels": task.channels, "size": task.size, "mean": task.mean, "std": task.std}
    return ExpertClassifier(body, task.classes, names, **pixels)


def wide_resnet(task: ImageTask, *, depth: int = 16, widen: int = 2) -> Classifier:
    """Wide residual network WRN-depth-widen of Zagoruyko and Komodakis (arXiv:1605.07146), without dropout.

    Args:
        task: Classes and images.
        depth: Layers with weights: 6 n + 4, that is 10, 16, 22, 28, 40 ...
        widen: Times the 16, 32 and 64 channels of the three stages.

    Raises:
        LimbeckError: a depth that is not 6 n + 4, or a factor below 1.
    """
    blocks = _blocks_per_stage("wide_resnet", depth, offset=4)
    _check_width("wide_resnet", "widen", widen)
    widths = (16 * widen, 32 * widen, 64 * widen)
    return _preactivation(task, stem=16, widths=widths, blocks=blocks)


def preact_resnet18(task: ImageTask, *, width: int = 64) -> Classifier:
    """ResNet-18 with pre-activation (arXiv:1603.05027) and a 3x3 stem, for small images.

    Four stages of two blocks with width, 2, 4 and 8 width channels.

    Args:
        task: Classes and images.
        width: Channels of the stem and of the first stage.

    Raises:
        LimbeckError: no channels.
    """
    _check_width("preact_resnet18", "width", width)
    widths = (width, 2 * width, 4 * width, 8 * width)
    return _preactivation(task, stem=width, widths=widths, blocks=2)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H / stride, W / stride]``, rounded up."""
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride > 1 or self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(residual + x)


class PreactBlock(nn.Module):
    """Normalisation and ReLU before each convolution; a new shape goes through a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H / stride, W / stride]``, rounded up."""
        active = F.relu(self.norm1(x))
        residual = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


def _preactivation(task: ImageTask, stem: int, widths: tuple[int, ...], blocks: int) -> Classifier:
    modules: list[nn.Module] = [_conv(task.channels, stem)]
    inputs = stem
    for stage, outputs in enumerate(widths):
        for block in range(blocks):
            modules.append(PreactBlock(inputs, outputs, stride=2 if stage and not block else 1))
            inputs = outputs
    return _classifier(task, [*modules, nn.BatchNorm2d(inputs), nn.ReLU()], inputs)


def _classifier(task: ImageTask, modules: list[nn.Module], features: int) -> Classifier:
    """Add pooling and head, initialise the convolutions as He et al. (arXiv:1502.01852), wrap."""
    body = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, len(task.classes)))
    _initialise(body)
    return Classifier(body, task.classes, channels=task.channels, size=task.size, mean=task.mean, std=task.std)


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [BasicBlock(inputs if not n else outputs, outputs, stride if not n else 1) for n in range(blocks)]


def _initialise(body: nn.Module) -> None:
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


def _blocks_per_stage(name: str, depth: int, offset: int) -> int:
    blocks, left = divmod(depth - offset, 6)
    if left or blocks < 1:
        near = 6 * max(1, round((depth - offset) / 6)) + offset
        raise LimbeckError(f"{name}: depth must be 6 n + {offset}, got {depth}; the nearest is {near}")
    return blocks


def _check_width(name: str, option: str, value: int) -> None:
    if value < 1:
        raise LimbeckError(f"{name}: {option} must be 1 or more, got {value}")
