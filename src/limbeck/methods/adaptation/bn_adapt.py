"""BN-adapt: batch normalisation by the statistics of the test batch."""

import copy

from limbeck.data.corrupted import CorruptedData
from limbeck.errors import LimbeckError
from limbeck.methods.method import Method
from limbeck.models.batch_norm import use_batch_statistics
from limbeck.models.classifier import Classifier
from limbeck.stages.objective import Batch, Terms
from limbeck.stages.stage import Program
from limbeck.stages.stream import Adapt, Adapter, online


class BNAdapter(Adapter):
    """Answers with the source's weights and the batch's statistics."""

    def __init__(self, source: Classifier, prior: int) -> None:
        super().__init__()
        self.prior = prior
        self.student = use_batch_statistics(copy.deepcopy(source), prior).requires_grad_(False)

    def terms(self, batch: Batch) -> Terms:
        """Nothing to minimise: the answer only."""
        self.keep(logits=self.student(batch).logits)
        return {}


class BNAdapt:
    """The statistics of batch normalisation move with the test distribution; no weight does.

    Source: Schneider, Rusak, Eck, Bringmann, Brendel, Bethge, "Improving robustness against common corruptions by
    covariate shift adaptation", arXiv 2006.16971 (2020), section 2. For a batch of n images

        mean = N / (N + n) mean_source + n / (N + n) mean_batch, and the variances likewise.

    N = 0 uses the batch alone; this is the "BN Stats Adapt" that CoTTA compares with. Batches do not influence one
    another.

    Args:
        teacher: the source model: a saved one, or the method that trains it on the clean images.
        data: the stream.
        prior: N, how many images the source's statistics count for (the paper's choice grows as batches shrink).
    """

    def __init__(self, teacher: Method, data: CorruptedData, prior: int = 0) -> None:
        if prior < 0:
            raise LimbeckError(f"prior is {prior}; it must be a number of images from 0 on")
        self.teacher = teacher
        self.data = data
        self.prior = prior

    def program(self) -> Program:
        """Train the source model where need be, then answer the stream."""
        source = yield from self.teacher.program()
        adapter = BNAdapter(source, self.prior)
        return (yield Adapt("adapt", adapter, source, self.data, online(self.data.stream.batch_size)))
