"""Supervised fine-tuning of a language model."""

from limbeck.losses.fused_linear import fused_linear_cross_entropy
from limbeck.losses.tokens import next_tokens
from limbeck.methods.language.tokens import TokenObjective
from limbeck.models.causal_lm import CausalLM
from limbeck.stages.objective import Batch, Terms


class SFT(TokenObjective):
    """Next-token prediction on the data's own tokens, as in step 1 of InstructGPT.

    Source: Ouyang et al., "Training language models to follow instructions with human feedback", arXiv 2203.02155
    (2022), section 3.5: cross-entropy of the next token,

        L = -sum_l m_l log q(y_l | y_<l) / sum_l m_l,

    where m_l says which tokens count (all, or those of responses: the data's ``mask_prompt``). The mean is over all
    tokens of the batch, not over rows.

    Args:
        student: the model to train.
    """

    student: CausalLM

    def __init__(self, student: CausalLM) -> None:
        super().__init__()
        self.student = student

    def terms(self, batch: Batch) -> Terms:
        """Cross-entropy over the tokens that count."""
        own, targets, valid = next_tokens(self.student(batch).projection, batch["labels"])
        return {"ce": fused_linear_cross_entropy(own, targets, weight=valid)}
