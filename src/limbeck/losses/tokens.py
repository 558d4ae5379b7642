"""Next-token prediction: logits and labels of a causal language model brought into line."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORED = -100
"""The label of a token that is not to be predicted: padding, and prompts where only responses count."""


class NextTokens(NamedTuple):
    """What a causal language model predicts, position by position; the last position predicts nothing.

    Attributes:
        logits: [*batch, L-1, V].
        targets: int64 [*batch, L-1], the token after each position; -100 where it does not count.
        valid: bool [*batch, L-1], where it counts.
    """

    logits: Tensor
    targets: Tensor
    valid: Tensor


def next_tokens(logits: Float[Tensor, "*batch length vocabulary"], labels: Int[Tensor, "*batch length"]) -> NextTokens:
    """The causal shift: the logits at position l are compared with the label at l + 1.

    Args:
        logits: [*batch, L, V].
        labels: [*batch, L], the tokens themselves, -100 where they do not count. The first is never predicted.
    """
    targets = labels[..., 1:]
    valid: Bool[Tensor, "*batch length-1"] = targets != IGNORED
    return NextTokens(logits[..., :-1, :], targets, valid)
