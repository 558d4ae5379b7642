"""The protocol of models for semantic segmentation: a batch in, logits for every pixel out."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from limbeck.errors import LimbeckError, nearest
from limbeck.models.classifier import ImageTask, Normalise
from limbeck.models.model import Model
from limbeck.models.torchvision_models import replace_head
from limbeck.models.unet import Norm, UNet

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of red, green and blue over ImageNet, as torchvision's weights expect them."""


class SegmenterOutput(NamedTuple):
    """What a segmenter returns.

    Attributes:
        logits: ``[B, C, H, W]``, one map a class in the order of the model's ``classes``, as large as the images.
    """

    logits: Tensor


class Segmenter(Model):
    """Any ``nn.Module`` that maps images to a map of logits, with class names and its own normalisation.

    Images come as float ``[B, 1 | 3, H, W]`` in [0, 1], of any size that the body takes (training views may be
    smaller than the images themselves); grey ones are repeated for a body of three channels.

    Args:
        body: maps images ``[B, channels, H, W]`` to logits ``[B, C, H, W]``, or to a dict that holds them as ``out``.
        spec: classes and images it is for.
        channels: channels the body takes; default those of the images.
        mean: subtracted from each channel; default that of the images.
        std: divides each channel; default that of the images.
    """

    task: ClassVar[str] = "segmentation"

    def __init__(
        self,
        body: nn.Module,
        spec: ImageTask,
        *,
        channels: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(spec)
        self.body = body
        self.channels = spec.channels if channels is None else channels
        own = spec.normalisation(self.channels)
        self.normalise = Normalise(own[0] if mean is None else mean, own[1] if std is None else std)

    def forward(self, batch: Mapping[str, Tensor] | Tensor) -> SegmenterOutput:
        """Logits of a batch.

        Args:
            batch: images, float ``[B, 1 | 3, H, W]`` in [0, 1], or a dict that holds them as ``image``.

        Raises:
            LimbeckError: no images in the batch, images of other channels, or a body whose output is not
                ``[B, len(classes), H, W]``.
        """
        images = batch if isinstance(batch, Tensor) else batch.get("image")
        if images is None:
            raise LimbeckError(f"the batch holds no 'image', only {sorted(batch)}")
        if images.ndim != 4 or images.shape[1] not in {1, self.channels}:
            raise LimbeckError(f"images must be [B, {self.channels}, H, W], got shape {list(images.shape)}")
        pixels = self.normalise(images.float().expand(-1, self.channels, -1, -1))
        weight = next((p for p in self.body.parameters() if p.is_floating_point()), pixels)
        output: Any = self.body(pixels.to(weight.dtype))
        logits = output["out"] if isinstance(output, Mapping) else output
        wanted = (len(images), len(self.classes), *images.shape[-2:])
        if logits.shape != wanted:
            raise LimbeckError(
                f"{type(self.body).__name__} returned logits of shape {list(logits.shape)}, expected {list(wanted)}: "
                "one map a class, as large as the images"
            )
        return SegmenterOutput(logits)


def unet_segmenter(
    task: ImageTask, *, width: int = 16, depth: int = 3, stride: int = 1, norm: Norm = "batch"
) -> Segmenter:
    """Small U-Net for images of any size, grey or RGB.

    Args:
        task: classes and images.
        width: channels of the first level; every further one has twice as many.
        depth: how often the image is halved.
        stride: pixels of the image to one of the first level; 2 takes about a quarter of the work.
        norm: normalisation after each convolution; "group" and "none" keep no batch statistics.

    Raises:
        LimbeckError: a width, depth or stride below one, or an unknown normalisation.
    """
    return Segmenter(UNet(task.channels, len(task.classes), width, depth, stride, norm), task)


def torchvision_segmenter(
    task: ImageTask,
    *,
    model: str = "deeplabv3_resnet50",
    weights: str | None = None,
    weights_backbone: str | None = None,
    imagenet_statistics: bool | None = None,
) -> Segmenter:
    """A segmentation model of torchvision (DeepLabV3, FCN, LR-ASPP); grey images are repeated to RGB.

    The auxiliary head of torchvision's weights is left out.

    Args:
        task: classes and images.
        model: name as torchvision.models.get_model takes it, such as deeplabv3_resnet101 or lraspp_mobilenet_v3_large.
        weights: pretrained weights of the whole model to download, such as DEFAULT; their last layer is replaced.
        weights_backbone: pretrained weights of the backbone only, such as DEFAULT.
        imagenet_statistics: whether images are normalised by ImageNet's mean and deviation rather than their own;
            default: where there are pretrained weights.

    Raises:
        LimbeckError: torchvision does not know the model, or cannot load the weights.
    """
    # Imported here: it takes seconds, and the other builder needs none of it.
    import torchvision.models as library

    names = library.list_models(module=library.segmentation)
    if model not in names:
        raise LimbeckError(f"torchvision has no segmentation model {model!r}.{nearest(model, names)}")
    arguments: dict[str, Any] = {"weights": weights, "weights_backbone": weights_backbone}
    if weights is None:
        arguments["num_classes"] = len(task.classes)
    try:
        body: nn.Module = library.get_model(model, **arguments)
    # Downloads and models raise errors of any kind.
    except Exception as error:
        raise LimbeckError(f"torchvision cannot make {model!r}: {type(error).__name__}: {error}") from error
    if weights is not None:
        categories = library.get_model_weights(model)[weights].meta["categories"]
        replace_head(body, len(categories), len(task.classes))
        if hasattr(body, "aux_classifier"):
            body.aux_classifier = None  # type: ignore[assignment]  # as torchvision leaves it without aux_loss
    if imagenet_statistics is None:
        imagenet_statistics = weights is not None or weights_backbone is not None
    mean, std = IMAGENET if imagenet_statistics else task.normalisation(3)
    segmenter = Segmenter(body, task, channels=3, mean=mean, std=std)
    segmenter.factory = "torchvision_segmenter"
    # A saved model has its own weights: loading it downloads nothing.
    segmenter.arguments = {
        "model": model,
        "weights": None,
        "weights_backbone": None,
        "imagenet_statistics": imagenet_statistics,
    }
    return segmenter
