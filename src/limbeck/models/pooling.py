"""From what is known of the instances of a bag to what is said of the bag."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.losses.reduction import in_full

Pooling = Literal["mean", "max", "attention"]


class Pooled(NamedTuple):
    """What a pooling says of bags of up to M instances and of their instances.

    Attributes:
        logits: [B, 2], negative and positive.
        scores: [B, M] in [0, 1], how positive each instance is; 0 where there is none.
    """

    logits: Tensor
    scores: Tensor


class InstancePooling(nn.Module):
    """The probability of a bag is the mean or the largest of its instances' probabilities to be positive.

    The logits of a bag are log-probabilities. The mean is symmetric in the classes: no bag is more certain than its
    instances together. With the largest one a single positive instance makes the bag positive (mi-Net, arXiv
    1610.02501, section 3.1), and only that instance gets a gradient.

    Args:
        how: mean or max.

    Raises:
        LimbeckError: another pooling.
    """

    def __init__(self, how: Literal["mean", "max"]) -> None:
        super().__init__()
        if how not in ("mean", "max"):
            raise LimbeckError(f"pooling of instances is {how!r}; it must be mean or max")
        self.how = how

    def forward(self, logits: Tensor, features: Tensor | None, mask: Tensor) -> Pooled:
        """Pool instances.

        Args:
            logits: of the instances [B, M, 2].
            features: not used.
            mask: bool [B, M], true where there is an instance, at least one a bag.
        """
        log_p = F.log_softmax(in_full(logits), dim=-1)
        scores = log_p[..., 1].exp().masked_fill(~mask, 0.0)
        if self.how == "mean":
            total = log_p.masked_fill(~mask[..., None], -torch.inf).logsumexp(dim=1)
            return Pooled(total - mask.sum(1, keepdim=True).to(total.dtype).log(), scores)
        # By log-odds: probabilities of many instances may all round to 1.
        odds = (log_p[..., 1] - log_p[..., 0]).masked_fill(~mask, -torch.inf)
        best = odds.argmax(dim=1)[:, None, None].expand(-1, 1, log_p.shape[-1])
        return Pooled(log_p.gather(1, best).squeeze(1), scores)


class AttentionPooling(nn.Module):
    """A linear classifier on the mean of the instances' features, weighted by learnt attention.

    ``a = softmax over the bag of w^T (tanh(V h) * sigmoid(U h))``, ``z = sum_i a_i h_i`` (gated, arXiv 1802.04712,
    equations 8 and 9); without gate ``w^T tanh(V h)``. An instance's score is its attention relative to the largest of
    its bag, times the bag's probability to be positive: attention alone, which sums to 1 in every bag, cannot be
    compared between bags (the second factor is a choice of ours; the paper rescales within a bag only).

    Args:
        features: size of h.
        hidden: rows of V and U.
        gated: whether there is a U.

    Raises:
        LimbeckError: no hidden units.
    """

    def __init__(self, features: int, hidden: int = 128, gated: bool = True) -> None:
        super().__init__()
        if hidden < 1:
            raise LimbeckError(f"attention needs hidden units, 1 or more, and hidden is {hidden}")
        self.content = nn.Linear(features, hidden)
        self.gate = nn.Linear(features, hidden) if gated else None
        self.weight = nn.Linear(hidden, 1, bias=False)
        self.classifier = nn.Linear(features, 2)

    def forward(self, logits: Tensor, features: Tensor, mask: Tensor) -> Pooled:
        """Pool instances.

        Args:
            logits: not used.
            features: of the instances [B, M, D].
            mask: bool [B, M], true where there is an instance, at least one a bag.
        """
        hidden = self.content(features).tanh()
        if self.gate is not None:
            hidden = hidden * self.gate(features).sigmoid()
        attention = in_full(self.weight(hidden).squeeze(-1)).masked_fill(~mask, -torch.inf).softmax(dim=1)
        bag = (attention[..., None] * features).sum(dim=1)
        said = self.classifier(bag)
        relative = attention / attention.amax(dim=1, keepdim=True)
        return Pooled(said, relative * in_full(said).softmax(dim=-1)[:, 1:])
