"""Supervised detection."""

from typing import ClassVar

from limbeck.models.detector import Detector, unpad
from limbeck.stages.objective import Batch, Objective, Terms


class SupervisedDetection(Objective):
    """A two-stage detector learns from the boxes of the labelled images.

    Source: Ren, He, Girshick, Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
    arXiv 1506.01497 (2015), trained end to end (section 3.2). Over sampled anchors and regions:

        L = BCE(objectness) + L1(anchor offsets) + CE(class or background) + L1(box offsets).

    L1 in the place of the paper's smooth L1, and both box terms divided by the number of sampled anchors or regions:
    so in mmdetection, on which semi-supervised detectors are built. Images without a box are background.

    Args:
        student: the detector.
    """

    progress: ClassVar[tuple[str, str]] = ("map_50", "higher")

    def __init__(self, student: Detector) -> None:
        super().__init__()
        self.student: Detector = student

    def terms(self, batch: Batch) -> Terms:
        """The four terms of the equation."""
        return {**self.student.losses(batch["image"], *unpad(batch["boxes"], batch["box_label"]))}
