"""A vote of networks on a sample, mixed with what they said of it before."""

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.labels.refine import mix_with_past
from limbeck.labels.vote import confidence_vote
from limbeck.teachers.past import PastPredictions


class AveragedVote(nn.Module):
    """Pseudo labels of SPARSE (arXiv 2508.06429): a vote by confidence, and a moving average for each sample.

    With ``p_m = softmax(z_m / T)``, the vote v of :func:`limbeck.labels.vote.confidence_vote`, and e the average of the
    sample's mean p, which begins with the first,

        v <- (1 - a) v + a e   where there is an e,       then   e <- d e + (1 - d) mean_m p_m.

    Args:
        num_samples: rows of the table, which is part of the state.
        num_classes: K.
        temperature: T > 0.
        decay: d.
        past_weight: a.

    Raises:
        LimbeckError: a temperature that is not positive, or shares outside [0, 1].
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        temperature: float = 0.5,
        decay: float = 0.99,
        past_weight: float = 0.3,
    ) -> None:
        super().__init__()
        if not temperature > 0 or not 0 <= decay <= 1 or not 0 <= past_weight <= 1:
            raise LimbeckError(
                f"temperature {temperature}, decay {decay}, past_weight {past_weight}: must be above 0, the others in "
                "[0, 1]"
            )
        self.past = PastPredictions(num_samples, num_classes)
        self.temperature, self.decay, self.past_weight = temperature, decay, past_weight

    def forward(self, logits: Tensor, index: Tensor) -> Tensor:
        """Labels v [B, K] by ``logits`` [M, B, K] of samples ``index`` [B]; nothing is remembered."""
        past, seen = self.past.read(index)
        return mix_with_past(confidence_vote(self._probabilities(logits)), past, self.past_weight * seen)

    @torch.no_grad()
    def update(self, logits: Tensor, index: Tensor) -> None:
        """Remember ``logits`` [M, B, K]."""
        past, seen = self.past.read(index)
        self.past.write(index, mix_with_past(self._probabilities(logits).mean(0), past, self.decay * seen))

    def _probabilities(self, logits: Tensor) -> Tensor:
        return (logits.float() / self.temperature).softmax(-1)
