"""Next-token prediction: what a causal language model says and the labels brought into line."""

from typing import NamedTuple

from jaxtyping import Bool, Int
from torch import Tensor

from limbeck.losses.fused_linear import Projection

IGNORED = -100
"""The label of a token that is not to be predicted: padding, and prompts where only responses count."""


class NextTokens(NamedTuple):
    """What a causal language model predicts, position by position; the last position predicts nothing.

    Attributes:
        projection: of logits [*batch, L-1, V].
        targets: int64 [*batch, L-1], the token after each position; -100 where it does not count.
        valid: bool [*batch, L-1], where it counts.
    """

    projection: Projection
    targets: Tensor
    valid: Tensor


def next_tokens(projection: Projection, labels: Int[Tensor, "*batch length"]) -> NextTokens:
    """The causal shift: the logits at position l are compared with the label at l + 1.

    Args:
        projection: of logits [*batch, L, V].
        labels: [*batch, L], the tokens themselves, -100 where they do not count. The first is never predicted.
    """
    targets = labels[..., 1:]
    valid: Bool[Tensor, "*batch length-1"] = targets != IGNORED
    return NextTokens(predictors(projection), targets, valid)


def predictors(projection: Projection) -> Projection:
    """Without the last position, which predicts nothing."""
    return projection._replace(hidden=projection.hidden[..., :-1, :])
