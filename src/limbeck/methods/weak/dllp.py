"""DLLP: deep learning from label proportions."""

from typing import ClassVar, Literal

from limbeck.data.bags import BagData
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.losses.proportion import proportion_cross_entropy
from limbeck.models.table_classifier import TableClassifier
from limbeck.stages.objective import Batch, Objective, Terms


class DLLP(Objective):
    """Of each bag only the proportions of its classes are known: the mean prediction of its rows is matched to them.

    Source: Ardehaly and Culotta, "Co-training for Demographic Classification Using Deep Learning from Label
    Proportions", arXiv 1709.04108 (2017), the batch averager, from memory of the paper:

        L = mean_B -sum_c p_Bc log(1/|B| sum_{i in B} softmax(z_i)_c).

    Batches are whole bags. What bags of every class mix say about a single row shrinks as they grow. With
    ``level="instance"`` every row has the proportions of its bag as its own soft label instead, the simplest baseline.

    Args:
        student: the model to train.
        level: where proportions are matched, of the bag's mean prediction or of every prediction of its own.
    """

    progress: ClassVar[tuple[str, str]] = ("auc", "higher")

    def __init__(self, student: TableClassifier, level: Literal["bag", "instance"] = "bag") -> None:
        super().__init__()
        if level not in ("bag", "instance"):
            raise LimbeckError(f"level is {level!r}; it must be bag or instance")
        self.student = student
        self.level = level

    def streams(self, data: BagData, batch_size: int, seed: int) -> Stream:
        """Whole bags; ``batch_size`` counts rows."""
        return data.train.stream(batch_size, seed)

    def terms(self, batch: Batch) -> Terms:
        """Cross-entropy with the proportions."""
        logits, proportions = self.student(batch).logits, batch["proportion"]
        if self.level == "instance":
            return {"ce": soft_cross_entropy(logits, proportions[:, None].expand_as(logits))}
        return {"ce": proportion_cross_entropy(logits, proportions)}
