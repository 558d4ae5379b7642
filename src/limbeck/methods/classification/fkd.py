"""Fast knowledge distillation."""

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data.codec import Kept, Storage, Tail
from limbeck.data.crop_stream import CropStream
from limbeck.data.samples import ImageData
from limbeck.data.stored_views import StoredViews
from limbeck.errors import LimbeckError
from limbeck.labels.mix import mixup_or_cutmix
from limbeck.labels.types import Labels
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.losses.reduction import Mean
from limbeck.methods.method import Method
from limbeck.models.classifier import Classifier
from limbeck.stages.fit import Fit
from limbeck.stages.label import Label
from limbeck.stages.objective import Batch, Objective, Terms
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.frozen import Frozen
from limbeck.teachers.stored import Stored

Mixing = Literal["none", "batch", "self"]


class StoredRegions(Objective):
    """The fit of :class:`FKD`: ``CE(q, softmax(z_S / T))`` on regions with stored labels q, the mean over the batch."""

    def __init__(
        self,
        student: Classifier,
        stored: Stored,
        crops: int,
        temperature: float,
        mixing: Mixing,
        mixup_alpha: float,
        cutmix_alpha: float,
    ) -> None:
        super().__init__()
        if not (temperature > 0 and mixup_alpha > 0 and cutmix_alpha > 0):
            raise LimbeckError(
                f"temperature is {temperature}, mixup_alpha {mixup_alpha} and cutmix_alpha {cutmix_alpha}; all must be "
                "above 0"
            )
        self.student = student
        self.stored = stored
        self.crops = crops
        self.temperature = temperature
        self.mixing = mixing
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha

    def streams(self, data: ImageData, batch_size: int, seed: int) -> CropStream:
        """Every image with several of its regions."""
        return CropStream(data.train, self.stored.store, batch_size, seed, self.crops, self.chosen(data))

    def chosen(self, data: ImageData) -> Tensor | None:
        """Which regions are drawn, bool [N, regions]; None for all of them."""
        return None

    def labels(self, batch: Batch) -> Labels:
        """The labels of a batch."""
        return Labels(self.stored(batch).logits.softmax(-1))

    def terms(self, batch: Batch) -> Terms:
        """The soft cross-entropy, of mixed regions where they are."""
        images, labels = self.mix(batch["image"], self.labels(batch))
        logits = self.student({**batch, "image": images}).logits
        loss = soft_cross_entropy(
            logits, labels.probabilities(logits.shape[1]), temperature=self.temperature, reduction="none"
        )
        return {"soft": Mean(torch.sum(loss * labels.weights), labels.weights.sum())}

    def mix(self, images: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
        """Mixup or CutMix, either in half of the batches; with ``self`` among the regions of one image."""
        if self.mixing == "none":
            return images, labels
        group = self.crops if self.mixing == "self" else 0
        alphas = (self.mixup_alpha, self.cutmix_alpha)
        return mixup_or_cutmix(images, labels, len(self.student.classes), *alphas, torch.default_generator, group)

    def summary(self) -> dict[str, float]:
        """What the labels take on the disk."""
        return {"bytes_a_label": float(sum(store.schema.row_bytes for store in self.stored.stores))}


class FKD:
    """A teacher runs once, over many regions of every image; students are trained from its stored labels.

    Source: Shen, Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", arXiv 2112.01528 (2022). Of
    each image ``regions`` random crops, mirrored or not, get the teacher's label q, stored in few numbers: the top k
    probabilities with the rest spread evenly (marginal smoothing), renormalised, all of them, or the hard label. In
    training an image is read once for ``crops`` of its regions, and

        L = - mean sum_c q_c log softmax(z_S / T)_c,

    without true labels and without T^2. Mixup (Beta 0.8) or CutMix (Beta 1), each in half of the batches, mix images
    and labels alike.

    Differs from the released code: crops are replayed from their number instead of stored boxes, labels are kept in
    float32 unless said otherwise, probabilities that float16 rounds to a sum above 1 leave nothing (there a negative
    rest), and training does not end with epochs of one crop an image, which there make room for evaluations.

    Args:
        student: the model to train.
        teacher: labels the regions; or stores of labels of the training view, from ``limbeck label``.
        data: what both see; ``data.view`` is the region (paper: ``crop@0.08-0.936``), a view counts as a sample.
        fit: how the student is trained (paper: SGD 0.1 for batches of 512, weight decay 1e-4, cosine, 300 epochs).
        regions: of each image that are labelled (R); with a store it has its own number.
        crops: regions of an image in a batch (m).
        kept: what is stored of a label: dense, top_k or hard.
        top_k: classes that are stored by top_k.
        tail: of top_k: smooth, or renormalize.
        storage: type of the stored numbers.
        temperature: T, of the student only.
        mixing: none, batch (partners from the whole batch) or self (from the same image, see FerKD).
        mixup_alpha: of the Beta distribution of mixup.
        cutmix_alpha: of the Beta distribution of CutMix.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Method,
        data: ImageData,
        fit: FitSettings,
        regions: int = 500,
        crops: int = 4,
        kept: Kept = "top_k",
        top_k: int = 5,
        tail: Tail = "smooth",
        storage: Storage = "float32",
        temperature: float = 1.0,
        mixing: Mixing = "none",
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
    ) -> None:
        if crops < 1 or regions < crops:
            raise LimbeckError(f"regions is {regions} and crops {crops}; a batch takes 1 to all regions of an image")
        self.student, self.teacher, self.data, self.fit = student, teacher, data, fit
        self.regions, self.kept, self.top_k, self.tail, self.storage = regions, kept, top_k, tail, storage
        self.training: dict[str, Any] = {
            "crops": crops,
            "temperature": temperature,
            "mixing": mixing,
            "mixup_alpha": mixup_alpha,
            "cutmix_alpha": cutmix_alpha,
        }

    def program(self) -> Program:
        """Label the regions, then train from the labels."""
        stored = yield from self.label()
        return (yield Fit("fit", StoredRegions(self.student, stored, **self.training), self.data, self.fit))

    def label(self) -> Program:
        """The teacher's labels of every region, as :class:`Stored`."""
        teacher = yield from self.teacher.program()
        if isinstance(teacher, Stored):
            teacher.replay(self.data)  # refuses labels of anything else
            return teacher
        labelled: StoredViews = yield Label(
            "label",
            Frozen(teacher, classes=self.data.classes),
            self.data.train,
            view=self.data.view,
            flip=self.data.flip,
            batch_size=256,
            views=self.regions,
            kept=self.kept,
            k=self.top_k if self.kept == "top_k" else 0,
            storage=self.storage,
        )
        labelled.store.tail = self.tail
        return Stored(labelled.store)
