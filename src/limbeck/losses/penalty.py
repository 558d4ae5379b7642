"""Penalties on the weights themselves, beside the weight decay of an optimiser."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def norm_penalty(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """``sum_l ||W_l||_2``: the sum of the norms, not of their squares (a group lasso, one group a tensor).

    Its gradient is ``W_l / ||W_l||``, of the same size however small a tensor is, and 0 for a tensor of zeros.

    Args:
        tensors: weights of any shapes; half precision is computed in float32. 0 where there are none.
    """
    norms = [torch.linalg.vector_norm(t, dtype=_full(t.dtype)) for t in tensors]
    return torch.stack(norms).sum() if norms else torch.zeros(())


def _full(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
