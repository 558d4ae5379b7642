"""Putting weights back to where they came from."""

import torch
from torch import nn

from limbeck.errors import LimbeckError


@torch.no_grad()
def restore_stochastically(model: nn.Module, source: nn.Module, p: float) -> None:
    """``W <- M W_0 + (1 - M) W`` with ``M ~ Bernoulli(p)`` for every element, in place.

    Stochastic restoration of CoTTA (arXiv 2203.13591, section 3.3). Draws come from torch's global generator of the
    weights' device. ``p = 1`` gives exactly the source, ``p = 0`` changes and draws nothing.

    Args:
        model: its trainable parameters W are restored.
        source: has the same parameters, W_0.
        p: the chance of each element, in [0, 1].

    Raises:
        LimbeckError: the two do not have the same parameters.
    """
    if p == 0:
        return
    origin = dict(source.named_parameters())
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if name not in origin or origin[name].shape != weight.shape:
            raise LimbeckError(f"the source has no parameter {name} of shape {list(weight.shape)} to restore from")
        # rand_like of half precision would round to 1 now and then.
        mask = torch.rand(weight.shape, device=weight.device) < p
        weight.copy_(torch.where(mask, origin[name].to(weight.dtype), weight))
