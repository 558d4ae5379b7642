"""Single-instance learning: every instance has the label of its bag."""

from typing import ClassVar, Literal

from limbeck.data.instance_bags import InstanceBagData
from limbeck.data.stream import Stream
from limbeck.losses.divergence import cross_entropy
from limbeck.models.bag_classifier import BagClassifier, classify_bags
from limbeck.models.classifier import Classifier
from limbeck.stages.objective import Batch, Objective, Terms


class SIL(Objective):
    """Every instance inherits the label of its bag, and a plain classifier learns from these noisy labels.

    Source: Carbonneau, Cheplygina, Granger, Gagnon, "Multiple Instance Learning: A Survey of Problem Characteristics
    and Applications", arXiv 1612.03365 (Pattern Recognition, 2018), where it is called SIL. With Y_b(i) the label of
    the bag of instance i,

        L = -mean_i log softmax(z_i)[Y_b(i)].

    Right for negative bags and for the positive instances; the others of positive bags are label noise.
    ``fit.batch_size`` counts instances.

    Args:
        student: the classifier of single instances.
        pooling: from the instances' probabilities to that of a bag, after training.
    """

    student: BagClassifier
    progress: ClassVar[tuple[str, str]] = ("instance_auc", "higher")

    def __init__(self, student: Classifier, pooling: Literal["mean", "max"] = "max") -> None:
        super().__init__()
        self.student = classify_bags(student, pooling)

    def streams(self, data: InstanceBagData, batch_size: int, seed: int) -> Stream:
        """The instances one by one, in their training view."""
        return Stream(data.train.instances, batch_size, seed, views=data.training_views, flip=data.flip)

    def terms(self, batch: Batch) -> Terms:
        """Mean cross-entropy over the instances."""
        return {"ce": cross_entropy(self.student.encoder(batch).logits, batch["label"])}
