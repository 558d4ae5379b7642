"""Supervised semantic segmentation."""

from typing import ClassVar

from limbeck.losses.divergence import cross_entropy
from limbeck.losses.reduction import Mean
from limbeck.models.segmenter import Segmenter
from limbeck.stages.objective import Batch, Objective, Terms


class SupervisedSegmentation(Objective):
    """Cross-entropy of every pixel whose class is known.

    Source: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", arXiv 1411.4038
    (CVPR 2015), section 3: the loss of an image is the sum over its pixels; here the mean over those of a batch,
    so that images with many ignored pixels count less.

    Args:
        student: the model to train.
    """

    progress: ClassVar[tuple[str, str]] = ("miou", "higher")
    student: Segmenter

    def __init__(self, student: Segmenter) -> None:
        super().__init__()
        self.student = student

    def terms(self, batch: Batch) -> Terms:
        """The mean over the pixels with a class."""
        known = batch["mask"] >= 0
        logits = self.student(batch).logits.movedim(1, -1)
        losses = cross_entropy(logits, batch["mask"], weight=known.float(), reduction="none")
        return {"ce": Mean.of(losses, known)}
