"""The protocol of two-stage detectors: a batch in, boxes out, and every part of it within reach."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image

from limbeck.errors import LimbeckError
from limbeck.labels.boxes import Detections
from limbeck.losses.detection import box_l1, objectness, weighted_cross_entropy
from limbeck.losses.reduction import Mean
from limbeck.models.classifier import ImageTask, Normalise, with_channels
from limbeck.models.detector_body import Backbone, DetectorBody, make_body
from limbeck.models.model import Model

BACKGROUND = 0
"""Column of the background in the logits of regions; class c of the data is column c + 1."""


class Features(NamedTuple):
    """The feature maps of a batch of images.

    Attributes:
        maps: by level, [B, channels, height / stride, width / stride].
        size: height and width of the images in pixels, to which boxes are clipped.
    """

    maps: dict[str, Tensor]
    size: tuple[int, int]


class Proposals(NamedTuple):
    """What the region proposal network says of B images with A anchors each.

    Attributes:
        objectness: logits [B, A].
        deltas: offsets of the anchors [B, A, 4].
        anchors: [A, 4], the same for every image.
        boxes: for each image the proposed boxes [P, 4], without gradient.
    """

    objectness: Tensor
    deltas: Tensor
    anchors: Tensor
    boxes: list[Tensor]


class Regions(NamedTuple):
    """Proposals that were sampled for training, with what they were assigned to.

    Attributes:
        boxes: for each image [R, 4].
        labels: int64, of the regions of all images: 0 is background, class c of the data is c + 1.
        targets: offsets from each region to its box [*, 4], of the regions of all images.
    """

    boxes: list[Tensor]
    labels: Tensor
    targets: Tensor


class RegionOutput(NamedTuple):
    """What the second stage says of the regions of all images, one after the other.

    Attributes:
        logits: [R, C + 1], the background first.
        boxes: the refined box of every class [R, C, 4], not clipped.
        deltas: the offsets behind them [R, C, 4].
    """

    logits: Tensor
    boxes: Tensor
    deltas: Tensor


class Detector(Model):
    """A Faster R-CNN (arXiv 1506.01497) of torchvision whose parts can be called one by one.

    Images come as float ``[B, 1 | 3, H, W]`` in [0, 1], all of one size, and are normalised here. Boxes are
    x1, y1, x2, y2 in pixels of these images.

    Args:
        body: the network.
        spec: classes and images that it is for.
    """

    task: ClassVar[str] = "detection"
    spec: ImageTask

    def __init__(self, body: DetectorBody, spec: ImageTask) -> None:
        super().__init__(spec)
        self.body = body
        mean, std = spec.normalisation(body.channels)
        self.normalise = Normalise(mean, std)

    def forward(self, batch: Mapping[str, Tensor]) -> Detections:
        """Boxes of the images under ``image``, after non-maximum suppression, in the order of their scores."""
        return self.detect(self.features(batch["image"]))

    def features(self, images: Tensor) -> Features:
        """The feature maps of images.

        Raises:
            LimbeckError: images that are not float ``[B, 1 | 3, H, W]``.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise LimbeckError(f"images must be float [B, 1 or 3, H, W], got {images.dtype} {list(images.shape)}")
        images = with_channels(images, self.body.channels)
        weight = next(self.body.parameters())
        maps: dict[str, Tensor] = self.body.backbone(self.normalise(images.float()).to(weight.dtype))
        return Features(maps, (images.shape[-2], images.shape[-1]))

    def propose(self, features: Features) -> Proposals:
        """Regions that may hold an object."""
        rpn, maps = self.body.rpn, list(features.maps.values())
        count = len(maps[0])
        scores, deltas = rpn.head(maps)
        sizes = [features.size] * count
        # Of the images anchors depend on the size only.
        anchors = rpn.anchor_generator(ImageList(maps[0].new_empty(count, 1, *features.size), sizes), maps)
        per_level = [level[0].numel() for level in scores]
        flat_scores, flat_deltas = (part.float() for part in concat_box_prediction_layers(scores, deltas))
        decoded = rpn.box_coder.decode(flat_deltas.detach(), anchors).view(count, -1, 4)
        boxes, _ = rpn.filter_proposals(decoded, flat_scores, sizes, per_level)
        flat_deltas = flat_deltas.view(count, -1, 4)
        return Proposals(flat_scores.view(count, -1), flat_deltas, anchors[0], boxes)

    def roi_predict(self, features: Features, boxes: Sequence[Tensor]) -> RegionOutput:
        """Classes and refined boxes of given regions, without non-maximum suppression.

        Args:
            features: of the images.
            boxes: for each image the regions [R, 4]; an image may have none.
        """
        logits, deltas = self._heads(features, boxes)
        deltas = deltas.view(-1, len(self.classes) + 1, 4)
        refined = self.body.roi_heads.box_coder.decode_single(deltas.flatten(1), torch.cat(list(boxes))).view_as(deltas)
        return RegionOutput(logits, refined[:, BACKGROUND + 1 :], deltas[:, BACKGROUND + 1 :])

    def refine(self, features: Features, boxes: Tensor, labels: Tensor) -> Tensor:
        """Copies of boxes as the second stage moves them: by the offsets of their own class, clipped to the image.

        Args:
            features: of the images.
            boxes: [T, B, K, 4], T copies of every box.
            labels: classes of the boxes [B, K]; where it is -1 nothing is computed and the copies stay.
        """
        used = labels >= 0
        parts = [boxes[:, image, use].flatten(0, 1) for image, use in enumerate(used)]
        own = torch.cat([label[use].repeat(len(boxes)) for label, use in zip(labels, used, strict=True)])
        moved = self.roi_predict(features, parts).boxes[torch.arange(len(own), device=own.device), own]
        refined = boxes.clone()
        for image, part in enumerate(moved.split([len(part) for part in parts])):
            refined[:, image, used[image]] = clip_boxes_to_image(part, features.size).view(len(boxes), -1, 4)
        return refined

    def detect(self, features: Features) -> Detections:
        """Boxes after non-maximum suppression, without gradient, in the order of their scores."""
        with torch.no_grad():
            proposals = self.propose(features).boxes
            logits, deltas = self._heads(features, proposals)
            sizes = [features.size] * len(proposals)
            found = self.body.roi_heads.postprocess_detections(logits, deltas, proposals, sizes)
        boxes, scores, labels = (nn.utils.rnn.pad_sequence(part, batch_first=True) for part in found)
        # What was padded has score 0 and the label of the background.
        return Detections(boxes, labels - 1, scores)

    def rpn_losses(self, proposals: Proposals, boxes: Sequence[Tensor]) -> dict[str, Mean]:
        """``rpn_objectness`` and ``rpn_box`` of sampled anchors against the true boxes [M, 4] of each image."""
        rpn = self.body.rpn
        anchors = [proposals.anchors] * len(boxes)
        labels, matched = rpn.assign_targets_to_anchors(anchors, [{"boxes": part} for part in boxes])
        targets = torch.stack(rpn.box_coder.encode(matched, anchors))
        positive, negative = (torch.stack(part).bool() for part in rpn.fg_bg_sampler(labels))
        sampled = positive | negative
        return {
            "rpn_objectness": objectness(proposals.objectness[sampled], positive[sampled]),
            "rpn_box": box_l1(proposals.deltas[sampled], targets[sampled], positive[sampled]),
        }

    def sample_regions(self, proposals: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Regions:
        """Assign proposals and the boxes themselves to boxes by IoU, and draw some of them.

        Args:
            proposals: for each image [P, 4].
            boxes: for each image the true boxes [M, 4]; an image may have none.
            labels: for each image the classes of its boxes, int64 [M].
        """
        targets = [{"boxes": part, "labels": label + 1} for part, label in zip(boxes, labels, strict=True)]
        regions, _, assigned, offsets = self.body.roi_heads.select_training_samples(list(proposals), targets)
        return Regions(regions, torch.cat(assigned), torch.cat(list(offsets)))

    def classification_loss(self, output: RegionOutput, regions: Regions, weight: Tensor | None = None) -> Mean:
        """Cross-entropy of sampled regions, each with its weight (1 by default), normalised by their sum."""
        weight = output.logits.new_ones(len(output.logits)) if weight is None else weight
        return weighted_cross_entropy(output.logits, regions.labels, weight)

    def box_loss(self, output: RegionOutput, regions: Regions) -> Mean:
        """L1 loss of the offsets of foreground regions, those of their own class."""
        own = (regions.labels - 1).clamp_min(0)
        deltas = output.deltas[torch.arange(len(own), device=own.device), own]
        return box_l1(deltas, regions.targets, regions.labels > BACKGROUND)

    def losses(self, images: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Mean]:
        """The four terms of supervised training; their sum is the loss of Faster R-CNN.

        Args:
            images: [B, C, H, W].
            boxes: for each image the true boxes [M, 4]; an image may have none.
            labels: for each image the classes of its boxes, int64 [M].
        """
        features = self.features(images)
        proposals = self.propose(features)
        regions = self.sample_regions(proposals.boxes, boxes, labels)
        output = self.roi_predict(features, regions.boxes)
        return {
            **self.rpn_losses(proposals, boxes),
            "cls": self.classification_loss(output, regions),
            "box": self.box_loss(output, regions),
        }

    def _heads(self, features: Features, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [R, C + 1] and offsets [R, 4 (C + 1)] of regions."""
        heads = self.body.roi_heads
        pooled = heads.box_roi_pool(features.maps, list(boxes), [features.size] * len(boxes))
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        return logits.float(), deltas.float()


def unpad(boxes: Tensor, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Padded boxes [B, M, 4] and labels [B, M] (-1: no box) as one tensor an image."""
    used = labels >= 0
    return [box[use] for box, use in zip(boxes, used, strict=True)], [
        label[use] for label, use in zip(labels, used, strict=True)
    ]


def faster_rcnn(
    task: ImageTask,
    *,
    backbone: Backbone = "small",
    weights: str | None = None,
    width: int = 16,
    stride: int = 8,
    anchors: Sequence[float] = (16, 32, 64),
    ratios: Sequence[float] = (1.0,),
    proposals: int = 100,
    rpn_samples: int = 128,
    samples: int = 64,
    foreground: float = 0.25,
    pool: int = 5,
    hidden: int = 128,
    score_threshold: float = 0.05,
    nms: float = 0.5,
    detections: int = 100,
) -> Detector:
    """Faster R-CNN on a small network of one feature map, or on a ResNet with a feature pyramid.

    Args:
        task: Classes and images.
        backbone: small (five convolutions with group normalisation, one map), or a ResNet of torchvision with frozen
            batch statistics and a feature pyramid of five maps.
        weights: Pretrained weights of the ResNet to download, such as IMAGENET1K_V1.
        width: Channels of the first convolution of the small network; the map has four times as many.
        stride: Pixels between two places of the small network's map: 4, 8 or 16.
        anchors: Sides in pixels of the anchors; with a feature pyramid one for each of its five maps.
        ratios: Heights over widths of the anchors.
        proposals: Proposals an image that go to the second stage.
        rpn_samples: Anchors an image that the first stage is trained on, half of them foreground at most.
        samples: Regions an image that the second stage is trained on.
        foreground: Largest share of foreground among these.
        pool: Side of the grid into which a region is pooled.
        hidden: Units of the two hidden layers of the second stage.
        score_threshold: Boxes below are not reported.
        nms: Largest IoU of two reported boxes of a class.
        detections: Boxes an image that are reported at most.

    Raises:
        LimbeckError: options out of range, or weights that cannot be loaded.
    """
    body = make_body(
        len(task.classes),
        3 if backbone != "small" else task.channels,
        backbone=backbone,
        weights=weights,
        width=width,
        stride=stride,
        anchors=tuple(anchors),
        ratios=tuple(ratios),
        pool=pool,
        hidden=hidden,
        options={
            "rpn_pre_nms_top_n_train": 10 * proposals,
            "rpn_pre_nms_top_n_test": 5 * proposals,
            "rpn_post_nms_top_n_train": proposals,
            "rpn_post_nms_top_n_test": proposals,
            "rpn_batch_size_per_image": rpn_samples,
            "box_batch_size_per_image": samples,
            "box_positive_fraction": foreground,
            "box_score_thresh": score_threshold,
            "box_nms_thresh": nms,
            "box_detections_per_img": detections,
        },
    )
    detector = Detector(body, task)
    # A saved model has its own weights: loading it downloads nothing.
    detector.factory = "faster_rcnn"
    detector.arguments = {
        "backbone": backbone,
        "weights": None,
        "width": width,
        "stride": stride,
        "anchors": list(anchors),
        "ratios": list(ratios),
        "proposals": proposals,
        "rpn_samples": rpn_samples,
        "samples": samples,
        "foreground": foreground,
        "pool": pool,
        "hidden": hidden,
        "score_threshold": score_threshold,
        "nms": nms,
        "detections": detections,
    }
    return detector
