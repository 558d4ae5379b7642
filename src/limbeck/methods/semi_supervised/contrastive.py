"""Contrastive pre-training: two views of an image are told from all other images of a batch."""

from typing import ClassVar

from limbeck.data.samples import ImageData
from limbeck.data.semi_supervised import without_labels
from limbeck.data.stream import Stream
from limbeck.data.views import check
from limbeck.errors import LimbeckError
from limbeck.losses.contrastive import nt_xent
from limbeck.models.heads import ContrastiveHead
from limbeck.models.joint import joint_forward
from limbeck.models.projector import Projector
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.processes import gathered
from limbeck.stages.settings import FitSettings
from limbeck.teachers.ema import EMA
from limbeck.teachers.key_queue import KeyQueue


class Contrastive(Objective):
    """NT-Xent (:func:`limbeck.losses.contrastive.nt_xent`) on all images, labelled or not; no label is used.

    Both views go through the network together, so that batch normalisation sees both. Several processes share their
    negatives; their batch normalisation is each one's own.

    Args:
        student: an encoder with the head of SimCLR.
        temperature: T > 0.
        view: name of the view that both readings are of, see :mod:`limbeck.data.views`.
        memory: outputs of an average of the network's weights, on past batches, that are negatives too; 0 for none.
        memory_decay: share of that average that an update leaves.
    """

    student: Projector
    progress: ClassVar[tuple[str, str]] = ("knn_accuracy", "higher")

    def __init__(
        self, student: Projector, temperature: float, view: str, memory: int = 0, memory_decay: float = 0.999
    ) -> None:
        super().__init__()
        self.student, self.temperature, self.view = student, temperature, view
        self.average = EMA(student, decay=memory_decay, warmup=False) if memory else None
        head = student.head
        assert isinstance(head, ContrastiveHead)
        self.queue = KeyQueue(memory, head.widths[-1]) if memory else None

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream:
        """All training images in two views each."""
        views = {"first": self.view, "second": f"{self.view}:2"}
        return Stream(without_labels(data), batch_size, seed, views=views, flip=data.flip)

    def terms(self, batch: Batch) -> Terms:
        """NT-Xent of the two views."""
        first, second = (gathered(o.logits) for o in joint_forward(self.student, batch["first"], batch["second"]))
        negatives = None
        if self.average is not None and self.queue is not None:
            negatives = self.queue.keys[self.queue.labels >= 0]
            self.keep(outputs=self.average({"image": batch["second"]}).logits)
        return {"nt_xent": nt_xent(first, second, negatives=negatives, temperature=self.temperature)}

    def after_update(self, batch: Batch) -> None:
        """Move the average, and remember what it said of this batch."""
        if self.average is not None and self.queue is not None:
            self.queue.push(batch["outputs"], batch["index"])  # filled places are those with a number from 0 on
            self.average.update(self.student)


def check_contrastive(settings: FitSettings, name: str, view: str, temperature: float) -> None:
    """Refuse what a contrastive training cannot be made with.

    Args:
        settings: of the fit.
        name: of these settings.
        view: of both readings.
        temperature: T.

    Raises:
        LimbeckError: no such view or one without chance, micro-batches, or a temperature that is not positive.
    """
    if check(view) == "none" or ":" in view:
        raise LimbeckError(f"view is {view!r}; two different readings of an image are needed, as of simclr or crop")
    if settings.accumulate > 1:
        raise LimbeckError(
            f"{name}.accumulate is {settings.accumulate}; it must be 1, as the negatives are those of the whole batch"
        )
    if not temperature > 0:
        raise LimbeckError(f"temperature is {temperature}; it must be above 0")
