"""MDCS: experts of different focus, each its own teacher."""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.data.samples import ImageData
from limbeck.data.stream import Stream
from limbeck.errors import LimbeckError
from limbeck.losses.divergence import cross_entropy, forward_kl
from limbeck.losses.logit_adjustment import adjust_logits
from limbeck.losses.reduction import Mean
from limbeck.models.experts import ExpertClassifier, check_experts
from limbeck.stages.objective import Batch, Objective, Plan, Terms
from limbeck.teachers.running_means import MovingMean

_MEMORY = 0.99
"""Share of the logged average that an update leaves."""


class MDCS(Objective):
    """Experts that favour frequent, medium and rare classes; what each gets right in a weak view it keeps in a strong.

    Source: Zhao et al., "MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed Recognition",
    arXiv 2308.09922 (ICCV 2023), equations read off the released code. With n_c training samples of class c and logits
    z_e of expert e, each has a prior of its own inside the softmax,

        a_e = z_e + lambda_e log n,   L_DL = sum_e CE(a_e, y)         mean over both views of the batch.

    The larger lambda_e, the more the bare z_e favour rare classes. Confident instance sampling takes the samples that
    the expert gets right in the weak view, M_e = {i : argmax a_e(weak_i) = y_i}; on them the strong view learns the
    weak one's answer, which has no gradient:

        L_CS = sum_e 1 / |M_e| sum_(i in M_e) T^2 KL(softmax(a_e(weak_i) / T) || softmax(a_e(strong_i) / T))
        L = L_DL + w min(epoch / warmup, 1) L_CS.

    Both views pass through the network together. The mean of the bare z_e is the model's answer. ``lambdas`` of 1 and
    no consistency are equal experts with balanced softmax. The log has the share of samples in M (``confident``) and
    how far the mean answers to the two views are apart (``view_kl``, nats), whose moving average is in ``result.json``.

    Differs from the released code: no 1e-9 inside the logarithm of the prior; the views are those of limbeck (there
    the weak view also rotates by up to 15 degrees, and the strong is AutoAugment with Cutout, here RandAugment with
    Cutout). Learning-rate warm-up is a setting of the fit. The paper's own symbols and values of lambda for each data
    set were not read; these are the code's for all.

    Args:
        student: a network with as many experts as there are lambdas; ``data.view`` is the weak view.
        lambdas: strength of the prior for each expert: below 1 frequent classes, above 1 rare ones.
        cs_weight: w, weight of the consistency when the warm-up is over.
        cs_warmup: epochs over which it grows from 0.
        temperature: T > 0, of the consistency.
    """

    class_counts: Tensor
    lambdas: Tensor
    student: ExpertClassifier

    def __init__(
        self,
        student: ExpertClassifier,
        lambdas: Sequence[float] = (-0.5, 1.0, 2.5),
        cs_weight: float = 0.6,
        cs_warmup: float = 20.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_experts(student, [len(lambdas)], "mdcs", f"{{name: expert_cnn, experts: {len(lambdas)}}}")
        for name, value in (("cs_weight", cs_weight), ("cs_warmup", cs_warmup)):
            if not value >= 0:
                raise LimbeckError(f"{name} is {value}; it must be at least 0")
        if not temperature > 0:
            raise LimbeckError(f"temperature is {temperature}; it must be above 0")
        self.student = student
        self.register_buffer("lambdas", torch.tensor([float(value) for value in lambdas]), persistent=False)
        self.cs_weight, self.cs_warmup, self.temperature = cs_weight, cs_warmup, temperature
        self.view_kl = MovingMean(_MEMORY)

    def streams(self, data: ImageData, batch_size: int, seed: int) -> Stream:
        """The training samples in two views."""
        views = {**data.training_views, "strong": "strong"}
        return Stream(data.train, batch_size, seed, views=views, flip=data.flip)

    def begin(self, plan: Plan) -> None:
        """Learn how many samples each class has."""
        self.register_buffer("class_counts", plan.class_sizes(), persistent=False)

    def strength(self, epoch: Tensor) -> Tensor:
        """Weight of the consistency of samples in ``epoch`` (from 0)."""
        grown = epoch / self.cs_warmup if self.cs_warmup else torch.ones_like(epoch)
        return self.cs_weight * grown.float().clamp(max=1.0)

    def terms(self, batch: Batch) -> Terms:
        """The diversity of all experts, and the consistency of each."""
        label = batch["label"]
        bare = self.student.each(torch.cat([batch["image"], batch["strong"]])).logits  # [2 B, E, C]
        adjusted = adjust_logits(bare, self.class_counts, self.lambdas)
        self.watch(*bare.detach().mean(1).chunk(2))

        labelled = (label >= 0).repeat(2)
        each = (-1, len(self.lambdas))
        hard = cross_entropy(
            adjusted, label.repeat(2)[:, None].expand(each), weight=labelled[:, None].expand(each), reduction="none"
        )
        terms: Terms = {"diversity": Mean.of(hard.sum(1), labelled)}

        weak, strong = adjusted.chunk(2)
        weak = weak.detach()
        right = weak.argmax(-1) == label[:, None]  # M_e, [B, E]
        self.observe(confident=Mean.of(right.float().mean(1), label >= 0))
        if self.cs_weight:
            kl = forward_kl(strong, weak, temperature=self.temperature, reduction="none")
            kl = self.strength(batch["epoch"])[:, None] * self.temperature**2 * kl
            for name, losses, chosen in zip(self.student.experts, kl.unbind(1), right.unbind(1), strict=True):
                terms[f"consistency/{name}"] = Mean.of(losses, chosen)
        return terms

    def watch(self, weak: Tensor, strong: Tensor) -> None:
        """Log how far the mean logits [B, C] of the two views are apart."""
        apart = forward_kl(strong, weak, reduction="none")
        self.observe(view_kl=Mean.of(apart))
        self.keep(view_kl=apart)

    def after_update(self, batch: Batch) -> None:
        """Remember how far the views are apart."""
        self.view_kl.update(batch["view_kl"])

    def summary(self) -> dict[str, float]:
        """How far the mean answers to the two views are apart, a moving average over the last updates."""
        return {"view_kl": float(self.view_kl.average)}
