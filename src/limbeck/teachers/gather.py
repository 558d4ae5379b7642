"""What every process must remember of a batch that all of them share."""

import torch
import torch.distributed as dist
from torch import Tensor


def gather_batch(values: Tensor) -> Tensor:
    """The global batch, in its own order, of which every process holds the slice ``[rank::world]``.

    Args:
        values: this process's part [B / world, ...]; of the same shape everywhere.

    Returns:
        [B, ...]; the values themselves where there is one process.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)
