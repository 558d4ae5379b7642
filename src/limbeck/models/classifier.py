"""The protocol of image classifiers: a batch in, logits and features out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import LimbeckError, nearest
from limbeck.models.model import Model
from limbeck.models.precision import keep_dtype

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""


@dataclass(frozen=True)
class ImageTask:
    """What a classifier is built for.

    Attributes:
        classes: Names of the classes, in the order of the logits.
        channels: Channels of the images: 1 (grey) or 3 (RGB).
        size: Height and width of the images in pixels.
        mean: Mean of each channel over the training images, in [0, 1].
        std: Standard deviation of each channel over the training images, > 0.

    Raises:
        LimbeckError: no classes, classes named twice, or numbers that no image can have.
    """

    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_classes(self.classes)
        _check_preprocessing(self.channels, self.size, self.mean, self.std)

    def normalisation(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation for a body of ``channels`` channels.

        A grey value repeated three times keeps its statistics; RGB made grey has the luma-weighted mean, and
        its standard deviation is taken as the mean of the three (channels of natural images are highly
        correlated).
        """
        if channels == self.channels:
            return self.mean, self.std
        if channels == 3:
            return self.mean * 3, self.std * 3
        grey = sum(weight * value for weight, value in zip(LUMA, self.mean, strict=True))
        return (grey,), (sum(self.std) / 3,)


class ClassifierOutput(NamedTuple):
    """What a classifier returns.

    Attributes:
        logits: ``[B, C]``, one column a class, in the order of the model's ``classes``.
        features: ``[B, D]``, the flattened input of the classification head; None where no head was found.
    """

    logits: Tensor
    features: Tensor | None


class Classifier(Model):
    """Any ``nn.Module`` that maps images to logits, with its class names and its own preprocessing.

    Images come as float ``[B, 1 | 3, H, W]`` in [0, 1]; they are turned to grey or RGB as the body needs,
    resized to ``size`` (bilinear, antialiased, aspect ratio not kept), normalised in float32, cast to the
    dtype of the body, and handed to it.

    Args:
        body: Maps images ``[B, channels, H, W]`` to logits ``[B, C]``, or to an object with a field
            ``logits``.
        classes: Names of the classes, in the order of the logits.
        channels: Channels the body takes: 1 or 3.
        size: Height and width the body takes (one number: a square); None leaves the images as they are.
        mean: Subtracted from each channel; default 0.
        std: Divides each channel; default 1.
        head: Dotted name of the classification head inside the body, whose input are the features. Default:
            the last ``nn.Linear`` or 1x1 ``nn.Conv2d`` with as many outputs as there are classes, if there is
            one.

    Attributes:
        classes: Names of the classes.

    Raises:
        LimbeckError: classes are empty or not unique, impossible preprocessing, no such head, or a body whose
            first convolution takes another number of channels.
    """

    task: ClassVar[str] = "classification"

    def __init__(
        self,
        body: nn.Module,
        classes: Sequence[str],
        *,
        channels: int = 3,
        size: int | Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        head: str | None = None,
    ) -> None:
        super().__init__(None)  # channels, size and statistics may be changed later: they are saved as they are then
        if isinstance(classes, str):
            raise LimbeckError(f"classes must be a sequence of names, not the one string {classes!r}")
        _check_classes(tuple(classes))
        self.classes = tuple(classes)
        self.body = body
        self.set_preprocessing(channels=channels, size=size, mean=mean, std=std)
        self.head = _head_name(body, len(self.classes), head)
        self._tap = _Tap()
        if self.head is not None:
            body.get_submodule(self.head).register_forward_pre_hook(self._tap)

    def set_preprocessing(
        self,
        *,
        channels: int,
        size: int | Sequence[int] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        """Replace what happens to images before the body sees them; arguments as of the class.

        Raises:
            LimbeckError: impossible numbers, or the body's first convolution takes another number of
                channels.
        """
        pair = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
        mean = (0.0,) * channels if mean is None else tuple(float(value) for value in mean)
        std = (1.0,) * channels if std is None else tuple(float(value) for value in std)
        _check_preprocessing(channels, pair, mean, std)
        taken = input_channels(self.body, channels)
        if taken != channels:
            raise LimbeckError(
                f"the first convolution of {type(self.body).__name__} takes {taken} channels, but the "
                f"classifier was given channels={channels}: pass channels={taken} "
                "(grey and RGB images are converted)"
            )
        self.channels = channels
        self.size: tuple[int, int] | None = None if pair is None else (pair[0], pair[1])
        self.mean = mean
        self.std = std
        self.normalise = Normalise(mean, std)

    def release_head(self) -> None:
        """Keep no input of the head any more: it becomes part of another classifier, and this one is done."""
        if self.head is not None:
            hooks = self.body.get_submodule(self.head)._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is self._tap]:
                del hooks[key]

    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> ClassifierOutput:
        """Logits and features of a batch.

        Args:
            batch: Images, float ``[B, 1 | 3, H, W]`` in [0, 1], or a dict that holds them as ``image``.

        Raises:
            LimbeckError: no images in the batch, images that are not float or not 1 or 3 channels, or a body
                whose output is not ``[B, len(classes)]``.
        """
        output = self.body(*self.inputs(batch))
        features, self._tap.value = self._tap.value, None
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if logits is None:
            raise LimbeckError(
                f"{type(self.body).__name__} returned {type(output).__name__}; a classifier's body must "
                "return logits [B, C] or an object with a field 'logits'"
            )
        if logits.ndim != 2 or logits.shape[1] != len(self.classes):
            raise LimbeckError(
                f"{type(self.body).__name__} returned logits of shape {list(logits.shape)}, expected "
                f"[B, {len(self.classes)}]: one column for each of the {len(self.classes)} classes"
            )
        return ClassifierOutput(logits, None if features is None else features.flatten(1))

    def inputs(self, batch: Mapping[str, Tensor] | Tensor) -> tuple[Tensor, ...]:
        """What the body takes of a batch: the preprocessed images."""
        return (self._preprocess(images_of(batch)),)

    def _preprocess(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise LimbeckError(f"images must be [B, 1, H, W] or [B, 3, H, W], got shape {list(images.shape)}")
        if not images.is_floating_point():
            raise LimbeckError(f"images must be float in [0, 1], got {images.dtype}: divide 8-bit images by 255")
        images = images.float()
        images = with_channels(images, self.channels)
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=True)
        images = self.normalise(images)
        weight = next(self.body.parameters(), None)
        return images if weight is None or not weight.is_floating_point() else images.to(weight.dtype)


def input_channels(body: nn.Module, default: int) -> int:
    """Channels that a body takes, read off its first 2-d convolution; ``default`` where that says nothing."""
    first = next((module for module in body.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else default


class _Tap:
    """Forward pre-hook that keeps the first input of the module it hangs on until it is collected.

    An object, not a closure: ``copy.deepcopy`` of a classifier copies hook and holder together.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.value = inputs[0]


class Normalise(nn.Module):
    """``(images - mean) / std`` per channel, with constants that stay float32 under every precision."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.identity = set(mean) == {0.0} and set(std) == {1.0}
        # Not persistent: they are written into config.json, in full precision.
        for name, values in (("mean", mean), ("std", std)):
            constant = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W], normalised."""
        return images if self.identity else (images - self.mean) / self.std

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_dtype(function), recurse)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Images [B, 1 | 3, H, W] with 1 or 3 channels: grey ones three times over, coloured ones by their luma."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    red, green, blue = LUMA
    return red * images[:, 0:1] + green * images[:, 1:2] + blue * images[:, 2:3]


def images_of(batch: Mapping[str, Tensor] | Tensor) -> Tensor:
    """The images of a batch.

    Raises:
        LimbeckError: the batch holds none.
    """
    if isinstance(batch, Tensor):
        return batch
    if "image" not in batch:
        raise LimbeckError(f"the batch holds no 'image', only {sorted(batch)}")
    return batch["image"]


def _head_name(body: nn.Module, outputs: int, asked: str | None) -> str | None:
    """Dotted name of the module whose input are the features ("" is the body itself)."""
    names = [name for name, _ in body.named_modules()]
    if asked is not None:
        if asked not in names:
            raise LimbeckError(f"{type(body).__name__} has no module named {asked!r}.{nearest(asked, names)}")
        return asked
    found = None
    for name, module in body.named_modules():
        linear = isinstance(module, nn.Linear) and module.out_features == outputs
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        if linear or (pointwise and module.out_channels == outputs):
            found = name
    return found


def _check_classes(classes: tuple[str, ...]) -> None:
    if not classes or not all(isinstance(name, str) for name in classes):
        raise LimbeckError(f"classes must be one name (a string) for each class, got {classes!r}")
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise LimbeckError(f"classes must have different names, these occur more than once: {twice}")


def _check_preprocessing(
    channels: int, size: tuple[int, ...] | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    if channels not in (1, 3):
        raise LimbeckError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise LimbeckError(f"size must be height and width in pixels, got {size!r}")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels or not all(math.isfinite(value) for value in values):
            raise LimbeckError(f"{name} must be {channels} finite numbers, one a channel, got {values!r}")
    if min(std) <= 0:
        raise LimbeckError(f"std must be positive, got {std!r}")
