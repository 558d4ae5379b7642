"""No adaptation: the source model answers the stream as it is."""

import copy

from limbeck.data.corrupted import CorruptedData
from limbeck.methods.method import Method
from limbeck.models.classifier import Classifier
from limbeck.stages.objective import Batch, Terms
from limbeck.stages.stage import Program
from limbeck.stages.stream import Adapt, Adapter, online


class SourceAdapter(Adapter):
    """Answers by the source model, its running statistics included."""

    def __init__(self, source: Classifier) -> None:
        super().__init__()
        self.student = copy.deepcopy(source).requires_grad_(False)

    def terms(self, batch: Batch) -> Terms:
        """Nothing to minimise: the answer only."""
        self.keep(logits=self.student(batch).logits)
        return {}


class Source:
    """The source model under corruptions, the reference of every adaptation.

    Source: Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
    arXiv 1903.12261 (2019): a model trained on clean images, measured on corrupted ones, section 4.

    Args:
        teacher: the source model: a saved one, or the method that trains it on the clean images.
        data: the stream.
    """

    def __init__(self, teacher: Method, data: CorruptedData) -> None:
        self.teacher = teacher
        self.data = data

    def program(self) -> Program:
        """Train the source model where need be, then answer the stream."""
        source = yield from self.teacher.program()
        return (yield Adapt("adapt", SourceAdapter(source), source, self.data, online(self.data.stream.batch_size)))
