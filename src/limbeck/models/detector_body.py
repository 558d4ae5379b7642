"""The networks of detectors: backbones, and the two stages of torchvision's Faster R-CNN on them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torchvision.models as library
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from limbeck.errors import LimbeckError

Backbone = Literal["small", "resnet18", "resnet34", "resnet50", "resnet101"]
_MAPS = 5  # of the feature pyramid, the pooled one included


class DetectorBody(nn.Module):
    """Backbone, region proposal network and region heads, as torchvision builds them.

    Args:
        network: a ``torchvision.models.detection.FasterRCNN``, whose own resizing and normalisation are left out.
        channels: channels that the backbone takes.
    """

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone: Any = network.backbone
        self.rpn: Any = network.rpn
        self.roi_heads: Any = network.roi_heads
        self.channels = channels


class SmallBackbone(nn.Module):
    """Five 3x3 convolutions with group normalisation, which small batches need; one map.

    Args:
        channels: of the images.
        width: of the first convolution; the map has four times as many.
        stride: 4, 8 or 16, by convolutions that skip every second place.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        steps = {4: (2, 2, 1, 1, 1), 8: (2, 2, 2, 1, 1), 16: (2, 2, 2, 2, 1)}
        if stride not in steps:
            raise LimbeckError(f"faster_rcnn: stride is {stride}; it must be 4, 8 or 16")
        widths = (channels, width, 2 * width, 4 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for inputs, outputs, step in zip(widths, widths[1:], steps[stride], strict=False):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=step, padding=1, bias=False),
                nn.GroupNorm(8, outputs),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.out_channels = 4 * width

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The map [B, 4 width, H / stride, W / stride]."""
        return {"0": self.layers(images)}


def make_body(
    classes: int,
    channels: int,
    *,
    backbone: Backbone,
    weights: str | None,
    width: int,
    stride: int,
    anchors: Sequence[float],
    ratios: Sequence[float],
    pool: int,
    hidden: int,
    options: Mapping[str, Any],
) -> DetectorBody:
    """The networks of :func:`limbeck.models.detector.faster_rcnn`; ``options`` are those of torchvision's FasterRCNN.

    Raises:
        LimbeckError: options out of range, or weights that cannot be loaded.
    """
    numbers = {"pool": pool, "hidden": hidden, **{key: value for key, value in options.items() if "top_n" in key}}
    for name, number in numbers.items():
        if number < 1:
            raise LimbeckError(f"faster_rcnn: {name} is {number}; it must be at least 1")
    if not anchors or not ratios or min(*anchors, *ratios) <= 0:
        raise LimbeckError(f"faster_rcnn: anchors {list(anchors)} and ratios {list(ratios)} must be positive")
    if backbone == "small":
        if weights is not None:
            raise LimbeckError(f"faster_rcnn: there are no weights {weights!r} of the small backbone; take a resnet")
        if width < 8 or width % 8:
            raise LimbeckError(f"faster_rcnn: width is {width}; it must be a multiple of 8")
        features: nn.Module = SmallBackbone(channels, width, stride)
        sizes: tuple[tuple[float, ...], ...] = (tuple(anchors),)
    else:
        if len(anchors) != _MAPS:
            raise LimbeckError(
                f"faster_rcnn: {len(anchors)} anchors; {backbone} has {_MAPS} maps and needs one for each, such as "
                "32, 64, 128, 256, 512"
            )
        features = _pyramid(backbone, weights)
        sizes = tuple((size,) for size in anchors)
    names = ["0"] if backbone == "small" else ["0", "1", "2", "3"]
    out_channels: int = features.out_channels  # type: ignore[assignment]
    network = FasterRCNN(
        features,
        num_classes=None,
        rpn_anchor_generator=AnchorGenerator(sizes, (tuple(ratios),) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign(featmap_names=names, output_size=pool, sampling_ratio=2),
        box_head=TwoMLPHead(out_channels * pool**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, classes + 1),
        **options,
    )
    predictor = network.roi_heads.box_predictor
    # As in the released Fast R-CNN: close to "unchanged", or the first updates are spent on unlearning noise.
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return DetectorBody(network, channels)


def _pyramid(backbone: str, weights: str | None) -> nn.Module:
    try:
        found = None if weights is None else library.get_model_weights(backbone)[weights]
        # With pretrained weights the first two stages stay as they are, as is usual.
        trained = 3 if found else 5
        network: nn.Module = resnet_fpn_backbone(backbone_name=backbone, weights=found, trainable_layers=trained)
    # Downloads raise errors of any kind.
    except Exception as error:
        raise LimbeckError(
            f"faster_rcnn: cannot load the weights {weights} of {backbone}: {type(error).__name__}: {error}"
        ) from error
    return network
