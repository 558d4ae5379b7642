"""Token-level distillation of a language model."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.losses import divergence as zoo
from limbeck.losses.adaptive_kl import adaptive_kl
from limbeck.losses.curriculum_temperature import CurriculumTemperature
from limbeck.losses.dkd import dkd
from limbeck.losses.fused_linear import Projection, fused_linear_cross_entropy, fused_linear_divergence
from limbeck.losses.reduction import Mean
from limbeck.losses.tokens import next_tokens, predictors
from limbeck.methods.language.tokens import TokenObjective
from limbeck.models.causal_lm import CausalLM, check_vocabularies
from limbeck.stages.objective import Batch, Plan, Terms
from limbeck.teachers.frozen import Frozen

Divergence = Literal[
    "forward_kl", "reverse_kl", "js", "skewed_forward_kl", "skewed_reverse_kl", "tvd", "adaptive_kl", "dkd", "ctkd"
]


class LMKD(TokenObjective):
    """A student language model learns from a teacher's distribution over the next token.

    Source: Kim, Rush, "Sequence-Level Knowledge Distillation", arXiv 1606.07947 (2016), section 3.1 (word-level
    distillation). With p the teacher's and q the student's distribution at temperature T, for every token that counts
    (mean over them):

        L = (1 - r) CE(y, q) + r T^2 D(p, q).

    The paper's D is the forward KL. The others are those that TAID (arXiv 2501.16937) compares with: reverse KL,
    Jensen-Shannon, skew KLs (DistiLLM), total variation, adaptive KL, decoupled KD and curriculum temperature (CTKD,
    whose temperature is learnt and takes the place of T). Off-policy: the tokens are those of the data.

    Differs from TAID's released baselines: KLs instead of cross-entropies where it takes these (the same gradient),
    and the head of the adaptive KL is that of its paper.

    Args:
        student: the model to train.
        teacher: a trained model with the same tokenizer.
        divergence: D.
        ratio: r, share of the distillation term.
        temperature: T > 0.
        skew: weight w of the teacher in the mixtures: M = w p + (1 - w) q of js and skewed_forward_kl, and
            (1 - w) p + w q of skewed_reverse_kl.
        dkd_alpha: weight of the target token's part of dkd.
        dkd_beta: weight of the other tokens' part of dkd.
    """

    student: CausalLM

    def __init__(
        self,
        student: CausalLM,
        teacher: Frozen,
        divergence: Divergence = "forward_kl",
        ratio: float = 1.0,
        temperature: float = 1.0,
        skew: float = 0.1,
        dkd_alpha: float = 1.0,
        dkd_beta: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 <= ratio <= 1:
            raise LimbeckError(f"ratio is {ratio}; it must lie between 0 and 1")
        if not temperature > 0:
            raise LimbeckError(f"temperature is {temperature}; it must be above 0")
        if divergence == "ctkd" and temperature != 1:
            raise LimbeckError(f"temperature is {temperature}, but ctkd learns its own: leave it at 1")
        check_vocabularies(student, teacher)
        self.student = student
        self.teacher = teacher
        self.divergence = divergence
        self.ratio = ratio
        self.temperature = temperature
        pointwise: dict[str, Callable[..., Tensor]] = {
            "forward_kl": zoo.forward_kl,
            "ctkd": zoo.forward_kl,
            "reverse_kl": zoo.reverse_kl,
            "js": partial(zoo.generalized_jsd, beta=skew),
            "skewed_forward_kl": partial(zoo.skewed_forward_kl, skew=skew),
            "skewed_reverse_kl": partial(zoo.skewed_reverse_kl, skew=skew),
            "tvd": zoo.total_variation,
            "adaptive_kl": adaptive_kl,
            "dkd": partial(dkd, alpha=dkd_alpha, beta=dkd_beta),
        }
        self.pointwise = pointwise[divergence]
        if divergence == "ctkd":
            self.learned_temperature = CurriculumTemperature()

    def begin(self, plan: Plan) -> None:
        """Learn how long training is: the curriculum's end."""
        self.total = plan.updates

    def terms(self, batch: Batch) -> Terms:
        """The hard and the soft term of the equation, from hidden states: the logits are never held at once."""
        teacher = predictors(self.teacher(batch).projection)
        own, targets, valid = next_tokens(self.student(batch).projection, batch["labels"])
        terms: Terms = {}
        if self.ratio < 1:
            terms["ce"] = fused_linear_cross_entropy(own, targets, weight=valid).times(1 - self.ratio)
        if self.ratio == 0:
            return terms
        if self.divergence == "ctkd":
            distance = self.at_learned_temperature(own, teacher, valid)
        else:
            rows = {"labels": targets} if self.divergence == "dkd" else {}
            measure = partial(self.pointwise, temperature=self.temperature)
            distance = fused_linear_divergence(own, teacher, measure, weight=valid, rows=rows)
            distance = distance.times(self.temperature**2)
        terms["kd"] = distance.times(self.ratio)
        return terms

    def at_learned_temperature(self, own: Projection, teacher: Projection, valid: Tensor) -> Mean:
        """T^2 D(p, q) with whole logits: the temperature has a gradient too."""
        learned = self.learned_temperature(self.total)
        self.observe(temperature=learned)
        values = self.pointwise(own.logits / learned, teacher.logits / learned, reduction="none") * learned**2
        return Mean.of(values, valid)

    def after_update(self, batch: Batch) -> None:
        """The curriculum goes on."""
        if self.divergence == "ctkd":
            self.learned_temperature.count()
