"""Supervised fine-tuning of a language model."""

from limbeck.losses.divergence import cross_entropy
from limbeck.losses.reduction import Mean
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
        tokens = next_tokens(self.student(batch).logits, batch["labels"])
        values = cross_entropy(tokens.logits, tokens.targets, weight=tokens.valid, reduction="none")
        return {"ce": Mean.of(values, tokens.valid)}
