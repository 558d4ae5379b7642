"""DeiT-LT: a vision transformer whose distillation token learns the tail from a small CNN."""

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.labels.class_weights import effective_number_weights
from limbeck.labels.mix import mixup_or_cutmix
from limbeck.labels.refine import smooth
from limbeck.labels.types import Labels
from limbeck.losses.divergence import cross_entropy, soft_cross_entropy
from limbeck.losses.reduction import Mean
from limbeck.models.experts import ExpertClassifier, check_experts
from limbeck.stages.objective import Batch, Objective, Plan, Terms
from limbeck.teachers.frozen import Frozen


class DeiTLT(Objective):
    """The class token learns the labels, the distillation token what a CNN says of strongly augmented images.

    Source: Rangwani et al., "DeiT-LT: Distillation Strikes Back for Vision Transformer Training on Long-Tailed
    Datasets", arXiv 2404.02900 (CVPR 2024), equations read off the released code. With mixup or CutMix of the student's
    augmented batch, (x~, y~), y~ smoothed, the tokens' logits z_cls and z_dist, and the teacher's t = argmax f(x~) on
    the very same images, which are out of distribution for it,

        L = (1 - alpha) CE(y~, z_cls) + alpha sum_i w_(t_i) CE(t_i, z_dist,i) / sum_i w_(t_i).

    w = 1 until epoch ``drw_epoch``, then the effective-number weights of the teacher's classes
    (:func:`limbeck.labels.class_weights.effective_number_weights`): deferred re-weighting. From then on images are not
    mixed and labels not smoothed, unless ``drw_mix`` says so (ImageNet-LT, iNaturalist). (z_cls + z_dist) / 2 is the
    answer; both tokens are measured on their own too, as ``cls/...`` and ``dist/...``. ``drw_epoch`` null is the hard
    distillation of DeiT (arXiv 2012.12877, section 4); alpha = 0 is a vision transformer alone, for which a student
    without a distillation token will do. The log has the cosine of the two tokens and how often the second agrees with
    the teacher.

    The teacher is a CNN that was trained on the same long tail, with a loss that is kind to it and by SAM (a flat
    minimum): a recipe gives it ``logit-adjustment`` and the optimizer ``sam`` (the paper: PaCo or LDAM-DRW, not here).
    It sees the student's view at its own size. The strong view is a choice of the data (``data.view``); that of DeiT
    (RandAugment, colour jitter, random erasing, crops) is here RandAugment with Cutout.

    Differs from the released code: re-weighting is on from ``drw_epoch`` only (there a flag in a tuple is always true),
    and a batch that begins before that epoch is not re-weighted. Its soft distillation, which weighs log-probabilities,
    is left out. Images are augmented at their own size and resized to the student's, not the other way round.

    Args:
        student: a network with two tokens; one where alpha is 0.
        teacher: a CNN trained on the same data; its classes are matched by name.
        alpha: weight of the distillation token.
        drw_epoch: epoch from which on the second token is re-weighted; null: never.
        beta: of the effective number of samples.
        mixup_alpha: of the Beta distribution of mixup, in half of the batches; 0 for none.
        cutmix_alpha: of the Beta distribution of CutMix, in the other half; 0 for none.
        label_smoothing: share of the label that is spread evenly.
        drw_mix: whether images are still mixed, and labels smoothed, while the second token is re-weighted.
    """

    class_weights: Tensor
    student: ExpertClassifier

    def __init__(
        self,
        student: ExpertClassifier,
        teacher: Frozen,
        alpha: float = 0.5,
        drw_epoch: float | None = 1100,
        beta: float = 0.9999,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        label_smoothing: float = 0.1,
        drw_mix: bool = False,
    ) -> None:
        super().__init__()
        for name, share in (("alpha", alpha), ("beta", beta), ("label_smoothing", label_smoothing)):
            if not 0 <= share <= 1:
                raise LimbeckError(f"{name} is {share}; it must lie between 0 and 1")
        if not min(mixup_alpha, cutmix_alpha) >= 0:
            raise LimbeckError(f"mixup_alpha is {mixup_alpha}, cutmix_alpha {cutmix_alpha}; they must be at least 0")
        check_experts(student, [2] if alpha else [1, 2], "deit-lt", "{name: vit, distillation_token: true}")
        self.student, self.teacher = student, teacher
        self.alpha, self.drw_epoch, self.beta, self.drw_mix = alpha, drw_epoch, beta, drw_mix
        self.mixup_alpha, self.cutmix_alpha, self.label_smoothing = mixup_alpha, cutmix_alpha, label_smoothing

    def begin(self, plan: Plan) -> None:
        """Weigh the classes by their numbers of samples."""
        weights = effective_number_weights(plan.class_sizes(), self.beta)
        self.register_buffer("class_weights", weights, persistent=False)

    def deferred(self, batch: Batch) -> bool:
        """Whether all samples of a batch are of the epochs of re-weighting."""
        return self.drw_epoch is not None and bool((batch["epoch"] >= self.drw_epoch).all())

    def mix(self, batch: Batch) -> tuple[Tensor, Labels]:
        """Mixed images with smoothed labels, or both as they are in the epochs of re-weighting."""
        classes = len(self.student.classes)
        labels = Labels(batch["label"].clamp(min=0), (batch["label"] >= 0).float())
        if self.deferred(batch) and not self.drw_mix:
            return batch["image"], Labels(labels.probabilities(classes), labels.weight)
        draws = (self.mixup_alpha, self.cutmix_alpha, torch.default_generator)
        images, mixed = mixup_or_cutmix(batch["image"], labels, classes, *draws)
        return images, Labels(smooth(mixed.probabilities(classes), self.label_smoothing), mixed.weight)

    def terms(self, batch: Batch) -> Terms:
        """What the class token learns from the labels and the distillation token from the teacher."""
        images, labels = self.mix(batch)
        output = self.student.each(images)
        terms: Terms = {}
        if self.alpha < 1:
            target = labels.probabilities(len(self.student.classes))
            losses = soft_cross_entropy(output.logits[:, 0], target, reduction="none")
            terms["cls"] = Mean.of(losses, labels.weights).times(1 - self.alpha)
        if self.alpha:
            hard = self.teacher({**batch, "image": images}).logits.argmax(-1)
            said = output.logits[:, 1]
            first, second = output.features.unbind(1)
            weight = self.class_weights[hard] if self.deferred(batch) else None
            terms["dist"] = Mean.of(cross_entropy(said, hard, reduction="none"), weight).times(self.alpha)
            self.observe(
                token_cosine=Mean.of(F.cosine_similarity(first, second)),
                teacher_agreement=Mean.of((said.argmax(-1) == hard).float()),
            )
        return terms
