"""MetaFormer: what is known of an image beside its pixels, as tokens."""

from typing import ClassVar, Literal

import torch

from limbeck.data.meta_encoding import mask_meta
from limbeck.data.meta_images import MetaSamples
from limbeck.data.samples import ImageData
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.mix import mixup_or_cutmix
from limbeck.labels.refine import smooth
from limbeck.labels.types import Labels
from limbeck.losses.divergence import soft_cross_entropy
from limbeck.losses.reduction import Mean
from limbeck.models.classifier import Classifier
from limbeck.models.metaformer import MetaClassifier
from limbeck.stages.evaluation import predict_logits, quality
from limbeck.stages.objective import Batch, Objective, Plan, Terms


class MetaFormer(Objective):
    """Images with place, date, attributes or text are classified by one network that reads all of it as tokens.

    Source: Diao, Jiang, Wen, Sun, Yuan, "MetaFormer: A Unified Meta Framework for Fine-Grained Recognition", arXiv
    2203.02751 (2022), with the training of the released code; the network is
    :func:`limbeck.models.metaformer.metaformer`. In training the meta-information of floor(B q) images of a batch,
    drawn at random, is forgotten (all of it 0), so that the network does not come to lean on it:

        q = mask_prob                      "constant"
        q = max(mask_prob - e / E, 0)      "linear", in epoch e (from 0) of E

    Images and labels are mixed in pairs, by Mixup or CutMix, each in half of the batches; meta-information is not: it
    is that of the first image. With targets t = (1 - epsilon) y + epsilon / C of the mixed labels y,
    L = -mean_b sum_c t_c log softmax(z)_c.

    There is no teacher; what softens labels is mixing and smoothing. The result has ``without_meta/accuracy``, the test
    accuracy where nothing is known of any image, and ``validation/without_meta/accuracy``.

    Differs from the released code: q never falls below 0 (there a negative share masks all but a few); partners are
    drawn (there the batch is mixed with itself reversed); epochs are those of this training, not set from outside.
    Which masking each of the paper's data sets had is not known: defaults are those of the released network, and not
    its configuration's (mask_prob 0, constant). A text is a group like any other here, one vector, which is encoded.

    Args:
        student: the network; it reads ``meta`` where it is a metaformer with groups.
        mask_prob: share of the images of a batch whose meta-information is forgotten (at the start, where linear).
        mask_type: how the share goes on.
        mixup: alpha of Mixup; 0: not used.
        cutmix: alpha of CutMix; 0: not used.
        label_smoothing: epsilon.
    """

    student: Classifier
    progress: ClassVar[tuple[str, str]] = ("accuracy", "higher")

    def __init__(
        self,
        student: Classifier,
        mask_prob: float = 1.0,
        mask_type: Literal["linear", "constant"] = "linear",
        mixup: float = 0.8,
        cutmix: float = 1.0,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        for name, share in (("mask_prob", mask_prob), ("label_smoothing", label_smoothing)):
            if not 0 <= share <= 1:
                raise LimbeckError(f"{name} is {share}; it must lie between 0 and 1")
        if not (mixup >= 0 and cutmix >= 0):
            raise LimbeckError(f"mixup is {mixup} and cutmix {cutmix}; at least 0")
        self.student = student
        self.mask_prob, self.mask_type = mask_prob, mask_type
        self.mixup, self.cutmix, self.label_smoothing = mixup, cutmix, label_smoothing

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream:
        """The training samples, with their meta-information where the network reads it."""
        if isinstance(self.student, MetaClassifier) and self.student.meta and not isinstance(data.train, MetaSamples):
            raise LimbeckError(
                "the student reads meta-information, and the data have none: take a source such as inaturalist or "
                "meta_images, or meta_dims: [] for images only"
            )
        self._data = data
        return Stream(data.train, batch_size, seed, views=data.training_views, flip=data.flip)

    def begin(self, plan: Plan) -> None:
        """Know how many epochs there are."""
        self.epochs = plan.epochs

    def masked_share(self, epoch: int) -> float:
        """The share q in ``epoch``, from 0."""
        return max(self.mask_prob - epoch / self.epochs, 0.0) if self.mask_type == "linear" else self.mask_prob

    def terms(self, batch: Batch) -> Terms:
        """Cross-entropy against mixed and smoothed labels, with part of the meta-information forgotten."""
        classes, generator = len(self.student.classes), torch.default_generator
        known = batch["label"] >= 0
        inputs = {"image": batch["image"]}
        if "meta" in batch:
            share = self.masked_share(int(batch["epoch"].min()))
            inputs["meta"] = mask_meta(batch["meta"], share, generator)
            self.observe(masked=torch.tensor(share))
        plain = Labels(batch["label"].clamp(min=0), weight=known.float())
        inputs["image"], labels = mixup_or_cutmix(batch["image"], plain, classes, self.mixup, self.cutmix, generator)
        targets = smooth(labels.probabilities(classes), self.label_smoothing)
        losses = soft_cross_entropy(self.student(inputs).logits, targets, reduction="none")
        return {"ce": Mean.of(losses, labels.weights)}

    def summary(self) -> dict[str, float]:
        """What the network is worth where nothing is known of any image."""
        found = {}
        for prefix, samples in (("", self._data.test), ("validation/", self._data.validation)):
            if isinstance(samples, MetaSamples):
                unknown = MetaSamples(torch.zeros_like(samples.meta), **samples.arguments)
                found[f"{prefix}without_meta/accuracy"] = quality(predict_logits(self.student, unknown))["accuracy"]
        return found
