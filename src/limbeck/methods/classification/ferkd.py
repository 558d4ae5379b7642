"""Distillation from stored labels of regions, each mended by how sure the teacher was."""

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data.codec import Kept, Storage, Tail
from limbeck.data.samples import ImageData
from limbeck.errors import LimbeckError
from limbeck.labels.calibrate import DISCARD, KEEP, SOFTEN, calibrate, certainty_bands
from limbeck.labels.types import Labels
from limbeck.methods.classification.fkd import FKD, Mixing, StoredRegions
from limbeck.methods.method import Method
from limbeck.models.classifier import Classifier
from limbeck.stages.fit import Fit
from limbeck.stages.objective import Batch
from limbeck.stages.settings import FitSettings
from limbeck.stages.stage import Program
from limbeck.teachers.stored import Stored

ROWS = 65_536


class CalibratedRegions(StoredRegions):
    """The fit of :class:`FerKD`; its hyperparameters are described there."""

    def __init__(
        self,
        student: Classifier,
        stored: Stored,
        low: float,
        middle: float,
        top: float,
        quantiles: bool,
        score: str,
        epsilon: float,
        **training: Any,
    ) -> None:
        super().__init__(student, stored, **training)
        self.thresholds, self.quantiles, self.score, self.epsilon = (low, middle, top), quantiles, score, epsilon
        self.limits, self.shares = self.thresholds, dict.fromkeys(("discarded", "softened", "kept"), 0.0)
        self._chosen: Tensor | None = None

    def scores(self, probabilities: Tensor, truth: Tensor) -> Tensor:
        """How sure the teacher was of each region, [B]."""
        if self.score == "confidence":
            return probabilities.max(-1).values
        return probabilities.gather(-1, truth[:, None])[:, 0]

    def chosen(self, data: ImageData) -> Tensor:
        """The regions that are not discarded; of an image without any the surest one."""
        if self._chosen is None:
            self._chosen = self._sort(data)
        return self._chosen

    def _sort(self, data: ImageData) -> Tensor:
        samples = data.train
        parts = []
        for rows in torch.arange(len(samples) * self.stored.store.schema.views).split(ROWS):
            at = rows % len(samples)
            logits = self.stored({"index": samples.indices[at], "epoch": rows // len(samples)}).logits
            parts.append(self.scores(logits.softmax(-1), samples.labels[at]))
        scores = torch.cat(parts)
        if self.quantiles:
            ordered = scores.sort().values
            low, middle, top = (float(ordered[round(share * (len(ordered) - 1))]) for share in self.thresholds)
            self.limits = low, middle, top
        bands = certainty_bands(scores, *self.limits)
        names = {"discarded": DISCARD, "softened": SOFTEN, "kept": KEEP}
        self.shares = {name: float((bands == band).float().mean()) for name, band in names.items()}
        scores, bands = scores.view(-1, len(samples)).T, bands.view(-1, len(samples)).T
        kept = bands != DISCARD
        surest = scores.argmax(1, keepdim=True)
        return kept | torch.zeros_like(kept).scatter(1, surest, ~kept.any(1, keepdim=True))

    def labels(self, batch: Batch) -> Labels:
        """Stored labels, or softened true ones; a discarded region that is all an image has keeps its label."""
        stored = super().labels(batch)
        assert isinstance(stored.target, Tensor)
        bands = certainty_bands(self.scores(stored.target, batch["label"]), *self.limits)
        return calibrate(stored.target, batch["label"], torch.where(bands == DISCARD, KEEP, bands), self.epsilon)

    def summary(self) -> dict[str, float]:
        """Also how many regions are discarded, softened and kept."""
        return {**super().summary(), **self.shares}


class FerKD:
    """FKD with regions sorted by the teacher's certainty, and images mixed with themselves.

    Source: Shen, "FerKD: Surgical Label Adaptation for Efficient Distillation", arXiv 2312.17473 (2023), on
    :class:`~limbeck.methods.classification.fkd.FKD`. With the score c of a region and thresholds T_L < T_M < T_T:

        c < T_L or c > T_T    too hard, or too easy to teach anything: discarded
        T_L <= c < T_M        background, context: the label becomes (1 - epsilon) onehot(y) + epsilon / C
        T_M <= c <= T_T       the stored label is kept

    and one loss on these labels, ``- mean sum_c q_c log softmax(z_S / T)_c``. SelfMix mixes only regions of one image.

    The rule is known from a reading note of the paper, whose code is not released. Choices: c is the largest
    probability, the thresholds (or take them as quantiles of all scores), epsilon and how it is spread, regions of a
    visit are drawn among those that are not discarded, an image without any keeps its surest one, and SelfMix permutes
    the regions of an image and mixes by mixup or CutMix like FKD.

    Args:
        student: the model to train.
        teacher: labels the regions; a store of labels of the training view, from ``limbeck label``, will do.
        data: what both see, see FKD.
        fit: how the student is trained, see FKD.
        regions: of each image that are labelled (R).
        crops: regions of an image in a batch (m).
        kept: what is stored of a label: dense, top_k or hard.
        top_k: classes that are stored by top_k.
        tail: of top_k: smooth, or renormalize.
        storage: type of the stored numbers.
        temperature: T, of the student only.
        mixing: none, batch or self.
        mixup_alpha: of the Beta distribution of mixup.
        cutmix_alpha: of the Beta distribution of CutMix.
        low: T_L.
        middle: T_M.
        top: T_T.
        quantiles: take the three as quantiles of the scores in the store.
        score: c is the largest probability (confidence) or that of the true class (truth).
        epsilon: of the softened labels.
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
        mixing: Mixing = "self",
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        low: float = 0.05,
        middle: float = 0.3,
        top: float = 0.98,
        quantiles: bool = False,
        score: Literal["confidence", "truth"] = "confidence",
        epsilon: float = 0.1,
    ) -> None:
        if not low <= middle <= top:
            raise LimbeckError(f"low is {low}, middle {middle} and top {top}; they must rise")
        if quantiles and not 0 <= low <= top <= 1:
            raise LimbeckError(f"low is {low} and top {top}; quantiles lie between 0 and 1")
        if not 0 <= epsilon <= 1:
            raise LimbeckError(f"epsilon is {epsilon}; it must lie between 0 and 1")
        self.base = FKD(
            *(student, teacher, data, fit, regions, crops, kept, top_k, tail, storage),
            *(temperature, mixing, mixup_alpha, cutmix_alpha),
        )
        self.calibration: dict[str, Any] = {
            "low": low,
            "middle": middle,
            "top": top,
            "quantiles": quantiles,
            "score": score,
            "epsilon": epsilon,
        }

    def program(self) -> Program:
        """Label the regions, then train from the mended labels."""
        base = self.base
        stored = yield from base.label()
        objective = CalibratedRegions(base.student, stored, **self.calibration, **base.training)
        return (yield Fit("fit", objective, base.data, base.fit))
