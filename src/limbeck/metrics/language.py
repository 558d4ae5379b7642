"""How well a language model predicts a text, and how varied what it writes is."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.losses.fused_linear import Projection, fused_linear_cross_entropy
from limbeck.losses.reduction import Mean
from limbeck.losses.tokens import next_tokens


@torch.no_grad()
def token_nll(projection: Projection, labels: Int[Tensor, "*batch length"]) -> Mean:
    """Negative log-likelihood of the next tokens in nats, as a mean that can be added up over batches.

    Args:
        projection: of logits [*batch, L, V], those at l about the token at l + 1.
        labels: [*batch, L], the tokens, -100 where they do not count.
    """
    shifted = next_tokens(projection, labels)
    return fused_linear_cross_entropy(shifted.projection, shifted.targets, weight=shifted.valid)


def perplexity(nll: float) -> float:
    """``exp(nll)``: the number of equally likely tokens that would be as hard to predict; inf where it overflows."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def distinct_n(rows: Sequence[Sequence[int]], n: int) -> float:
    """Share of the n-grams of all rows together that are different (arXiv 1510.03055, section 5.2), in (0, 1].

    Args:
        rows: tokens; n-grams do not run over the end of a row.
        n: n >= 1.

    Raises:
        LimbeckError: no row has n tokens.
    """
    grams = [tuple(row[at : at + n]) for row in rows for at in range(len(row) - n + 1)]
    if n < 1 or not grams:
        raise LimbeckError(f"there are no {n}-grams in {len(rows)} rows")
    return len(set(grams)) / len(grams)
