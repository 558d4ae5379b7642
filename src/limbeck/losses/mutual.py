"""Networks that learn from one another."""

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.losses.divergence import forward_kl


def peer_divergence(
    logits: Float[Tensor, "networks batch classes"], *, temperature: float | int = 1.0
) -> Float[Tensor, ""]:
    """``sum_m KL(mean of the other networks' q || q_m)``, q = softmax(z / T): the mean over the batch.

    The others' predictions are without gradient, so that each network's is that of its own divergence. Unlike in deep
    mutual learning (arXiv 1706.00384) the others speak with one voice (SPARSE, arXiv 2508.06429). 0 where all agree.

    Args:
        logits: [M, B, K], M >= 2.
        temperature: T > 0; the result is not multiplied by its square.
    """
    q = (logits.detach() / temperature).softmax(-1)
    others = torch.stack([torch.cat([q[:m], q[m + 1 :]]).mean(0) for m in range(len(q))])
    return forward_kl(logits / temperature, others.log(), reduction="none").mean(1).sum()
