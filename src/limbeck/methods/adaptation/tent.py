"""Tent: test entropy minimisation."""

import copy
from typing import Literal

from limbeck.data.corrupted import CorruptedData
from limbeck.losses.entropy import entropy
from limbeck.methods.method import Method
from limbeck.models.batch_norm import affine_parameters, use_batch_statistics
from limbeck.models.classifier import Classifier
from limbeck.stages.objective import Batch, Terms
from limbeck.stages.stage import Program
from limbeck.stages.stream import Adapt, Adapter, online


class TentAdapter(Adapter):
    """The model learns to be sure of its answers, by scale and shift of its batch normalisation only."""

    def __init__(self, source: Classifier) -> None:
        super().__init__()
        self.student = use_batch_statistics(copy.deepcopy(source)).requires_grad_(False)
        for weight in affine_parameters(self.student):
            weight.requires_grad_(True)

    def terms(self, batch: Batch) -> Terms:
        """The mean entropy of the answers, which are those from before the update."""
        logits = self.student(batch).logits
        self.keep(logits=logits)
        return {"entropy": entropy(logits)}


class Tent:
    """The entropy of a model's own predictions is minimised, batch by batch, online and without a reset.

    Source: Wang, Shelhamer, Liu, Olshausen, Darrell, "Tent: Fully Test-Time Adaptation by Entropy Minimization",
    arXiv 2006.10726 (ICLR 2021), section 3:

        L = -(1/B) sum_b sum_k p_bk log p_bk, p = softmax(f(x)).

    Batch normalisation uses the statistics of the batch; only its scale and shift are trained; one step a batch.
    Without a reset between domains it is the "TENT-continual" that CoTTA compares with. The optimiser's settings
    are those of the released code for CIFAR-10-C, from memory. Differs from the released code where a network has
    dropout: it is off here.

    Args:
        teacher: the source model: a saved one, or the method that trains it on the clean images.
        data: the stream.
        optimizer: Adam, or SGD as on ImageNet.
        lr: learning rate (1e-3 on CIFAR with batches of 200, 2.5e-4 on ImageNet with batches of 64).
        momentum: of SGD, or the first beta of Adam.
    """

    def __init__(
        self,
        teacher: Method,
        data: CorruptedData,
        optimizer: Literal["adam", "sgd"] = "adam",
        lr: float = 1e-3,
        momentum: float = 0.9,
    ) -> None:
        self.teacher = teacher
        self.data = data
        self.settings = online(self.data.stream.batch_size, optimizer, lr, momentum)

    def program(self) -> Program:
        """Train the source model where need be, then adapt to the stream."""
        source = yield from self.teacher.program()
        return (yield Adapt("adapt", TentAdapter(source), source, self.data, self.settings))
