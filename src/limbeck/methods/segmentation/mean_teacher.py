"""Mean teacher for semantic segmentation."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from limbeck.data.mask_samples import MaskData
from limbeck.data.mask_views import COLOUR_DRAWS, recolour
from limbeck.data.semi_supervised import Batches
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.labels.mix import classmix, cutmix_pixels
from limbeck.labels.select import confidence_share, entropy_percentile
from limbeck.labels.types import Labels
from limbeck.losses.divergence import cross_entropy
from limbeck.losses.reduction import Mean
from limbeck.metrics.pseudo_labels import coverage, precision
from limbeck.models.batch_norm import batch_statistics
from limbeck.models.segmenter import Segmenter
from limbeck.stages.objective import Batch, Objective, Plan, Terms
from limbeck.teachers.ema import EMA
from limbeck.teachers.running_means import MovingMean


class MeanTeacher(Objective):
    """An average phi of the student's past weights theta labels the pixels of unlabelled images for it.

    Source: Tarvainen, Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
    semi-supervised deep learning results", arXiv 1703.01780 (NeurIPS 2017), in the form that FST
    (arXiv 2209.06993) starts from, which is self-training with pseudo labels y = argmax softmax(phi(u)):

        L(theta; phi) = mean over labelled pixels CE(y_l, theta(x)) + mean over all pixels w CE(y', theta(u'))

    where (u', y', w) are the unlabelled images and their labels and weights after mixing. After update i (from 1)
    phi <- m phi + (1 - m) theta with m = min(1 - 1 / (i + 1), mu); it begins as the student. The student is kept.

    ``selection="confidence"`` (DACS, arXiv 2007.08702): w is the share of all pixels of the batch with max p >=
    threshold. ``selection="entropy"`` (U2PL, arXiv 2203.03884): pixels whose entropy is above the drop_percent-th
    percentile are ignored, and the mean over those that are kept is multiplied by (pixels / kept pixels); the
    entropy is phi's on the mixed image, with batch normalisation by the statistics of the batch.

    Differs from released code: labelled and mixed images share one forward pass (as in the SSL code; the UDA code
    passes them one by one), phi labels in eval mode with the student's current batch-norm statistics, dropout stays
    off when its entropy is taken, and ImageNet feature distance is left out. With ``fit.accumulate`` share and
    percentile are those of a micro-batch.

    Args:
        student: the model to train.
        mu: m of the teacher; 0.999 in DACS, 0.99 in U2PL.
        selection: how pseudo labels are weighed.
        threshold: of confidence.
        drop_percent: of the pixels that are kept or dropped by entropy; 100 keeps all.
        mix: half of the classes of a labelled image pasted on an unlabelled one (ClassMix), boxes exchanged between
            unlabelled images (CutMix), or nothing.
        colours: whether colours are jittered and images blurred after mixing, as in DACS.
        ignored_top: rows at the top of unlabelled images whose labels have weight 0; 15 of 512 in the UDA code.
        ignored_bottom: such rows at the bottom; 120 of 512 in the UDA code, where Cityscapes shows the car's hood.
    """

    progress: ClassVar[tuple[str, str]] = ("miou", "higher")
    student: Segmenter

    def __init__(
        self,
        student: Segmenter,
        mu: float = 0.999,
        selection: Literal["confidence", "entropy"] = "confidence",
        threshold: float = 0.968,
        drop_percent: float = 80.0,
        mix: Literal["classmix", "cutmix", "none"] = "classmix",
        colours: bool = True,
        ignored_top: int = 0,
        ignored_bottom: int = 0,
    ) -> None:
        super().__init__()
        for name, value, top in (("mu", mu, 1), ("threshold", threshold, 1), ("drop_percent", drop_percent, 100)):
            if not 0 <= value <= top:
                raise LimbeckError(f"{name} is {value}; it must lie between 0 and {top}")
        if min(ignored_top, ignored_bottom) < 0:
            raise LimbeckError(f"ignored_top is {ignored_top} and ignored_bottom {ignored_bottom}; at least 0 each")
        self.student = student
        self.mu = mu
        self.selection = selection
        self.threshold = threshold
        self.drop_percent = drop_percent
        self.mix = mix
        self.colours = colours
        self.ignored_top, self.ignored_bottom = ignored_top, ignored_bottom
        self.early_accuracy = MovingMean(None)

    def streams(self, data: MaskData, batch_size: int, seed: int) -> dict[str, Stream]:
        """As many unlabelled as labelled images, each in a view of its own."""
        return {
            "labeled": self.stream(data, "labeled", batch_size, seed),
            "unlabeled": self.stream(data, "unlabeled", batch_size, seed),
        }

    def stream(self, data: MaskData, name: str, batch_size: int, seed: int) -> Stream:
        """A stream of labelled or unlabelled images; what follows a colon in its name gives it an order of its own."""
        samples = data.train if name.partition(":")[0] == "labeled" else data.unlabeled
        if samples is None:
            raise LimbeckError("there are no unlabelled images to teach with: set data.labeled below 1")
        rows = samples.window.size[0]
        if self.ignored_top + self.ignored_bottom >= rows:
            raise LimbeckError(
                f"ignored_top {self.ignored_top} and ignored_bottom {self.ignored_bottom} leave nothing of {rows} rows"
            )
        return Stream(samples, batch_size, seed, views=data.training_views, name=name, flip=data.flip)

    def begin(self, plan: Plan) -> None:
        """The teacher starts as the student, which counts as its first update."""
        self.teacher = EMA(self.student, self.mu, warmup="mean")
        self.teacher.update(self.student)
        self.first_half = max(1, plan.updates // 2)

    def terms(self, batch: Batches) -> Terms:
        """The two means of the equation; what the pseudo labels are worth is logged."""
        pseudo = self.pseudo_labels(batch["unlabeled"])
        self.watch(pseudo, batch["unlabeled"])
        return self.losses(batch["labeled"], batch["unlabeled"], pseudo)

    def pseudo_labels(self, unlabeled: Batch) -> Labels:
        """The teacher's class of each pixel [B, H, W]."""
        soft = Labels(self.teacher(unlabeled).logits.float().softmax(1).movedim(1, -1))
        if self.selection == "confidence":
            soft = confidence_share(soft, self.threshold)
        rows = torch.arange(soft.batch_shape[1], device=soft.weights.device)
        inside = (rows >= self.ignored_top) & (rows < len(rows) - self.ignored_bottom)
        return Labels(soft.predicted(), soft.weights * inside[:, None])

    def mixed(self, labeled: Batch, unlabeled: Batch, pseudo: Labels) -> tuple[Tensor, Labels]:
        """The images that the student is shown in the place of the unlabelled ones, and their labels."""
        images, labels, generator = unlabeled["image"], pseudo, torch.default_generator
        if self.mix == "classmix":
            truth = Labels(labeled["mask"], (labeled["mask"] >= 0).float())
            classes = len(self.student.classes)
            images, labels = classmix(images, labels, labeled["image"], truth, classes, generator)
        elif self.mix == "cutmix":
            images, labels = cutmix_pixels(images, labels, generator)
        if self.colours:
            images = recolour(images, torch.rand(len(images), COLOUR_DRAWS))
        return images, labels

    @torch.no_grad()
    def certain(self, images: Tensor, labels: Labels) -> Labels:
        """The labels without the pixels in which the teacher's entropy is large."""
        with batch_statistics(self.teacher.model):
            probabilities = self.teacher(images).logits.float().softmax(1)
        return entropy_percentile(labels, self.drop_percent, torch.special.entr(probabilities).sum(1))

    def losses(self, labeled: Batch, unlabeled: Batch, pseudo: Labels) -> Terms:
        """The terms for given pseudo labels."""
        images, labels = self.mixed(labeled, unlabeled, pseudo)
        if self.selection == "entropy":
            labels = self.certain(images, labels)
        both = self.student(torch.cat([labeled["image"], images])).logits.movedim(1, -1)
        supervised, taught = both.split([len(labeled["image"]), len(images)])

        known = labeled["mask"] >= 0
        truth = cross_entropy(supervised, labeled["mask"], weight=known.float(), reduction="none")
        losses = cross_entropy(taught, labels.predicted(), weight=labels.weights, reduction="none")
        term = Mean.of(losses)
        if self.selection == "entropy":
            kept = labels.weights.sum()
            term = Mean(term.total, kept).times(term.count / kept.clamp(min=1))
        return {"ce": Mean.of(truth, known), "self_training": term}

    def watch(self, pseudo: Labels, unlabeled: Batch) -> None:
        """Log how far the pseudo labels are trusted and, where the truth is known, how many are right."""
        self.observe(coverage=coverage(pseudo))
        if "hidden_mask" not in unlabeled:
            return
        hidden = unlabeled["hidden_mask"]
        right, known = pseudo.predicted().eq(hidden).flatten(1).sum(1), (hidden >= 0).flatten(1).sum(1)
        accuracy = right / known.clamp(min=1)
        self.observe(precision=precision(pseudo, hidden), pseudo_accuracy=Mean.of(accuracy))
        self.keep(pseudo_accuracy=accuracy)

    def after_update(self, batch: Batch) -> None:
        """The teacher absorbs the new student."""
        self.teacher.update(self.student)
        if "pseudo_accuracy" in batch and int(self.early_accuracy.num_batches) < self.first_half:
            self.early_accuracy.update(batch["pseudo_accuracy"])

    def summary(self) -> dict[str, float]:
        """Accuracy of the pseudo labels of all unlabelled pixels, mean over the first half of the updates."""
        if not int(self.early_accuracy.num_batches):
            return {}
        return {"pseudo_accuracy": float(self.early_accuracy.average)}
