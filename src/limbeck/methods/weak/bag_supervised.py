"""Bags with one label each: what a model says of the whole bag is compared with it."""

from typing import ClassVar

from limbeck.data.instance_bags import InstanceBagData
from limbeck.data.stream import Stream
from limbeck.losses.divergence import cross_entropy
from limbeck.models.bag_classifier import BagClassifier
from limbeck.stages.objective import Batch, Objective, Terms


class BagSupervised(Objective):
    """Cross-entropy of the labels of whole bags; ``fit.batch_size`` counts bags.

    A subclass sets ``self.student``, whose pooling is the method.
    """

    student: BagClassifier
    progress: ClassVar[tuple[str, str]] = ("bag_nll", "lower")

    def streams(self, data: InstanceBagData, batch_size: int, seed: int) -> Stream:
        """The training bags, every instance in its training view."""
        return Stream(data.train, batch_size, seed, views=data.training_views, flip=data.flip)

    def terms(self, batch: Batch) -> Terms:
        """Mean cross-entropy over the bags."""
        return {"ce": cross_entropy(self.student(batch).logits, batch["label"])}
