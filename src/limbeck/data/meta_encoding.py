"""When and where as numbers without a jump: hours and months on circles, places on the unit sphere."""

import math

import torch
from torch import Tensor


def encode_time(month: Tensor, hour: Tensor) -> Tensor:
    """``[sin, cos](2 pi month / 12), [sin, cos](2 pi hour / 24)`` (MetaFormer, arXiv 2203.02751, released code).

    Args:
        month: float [N], 1 to 12 (12 is the same as 0); NaN where it is not known.
        hour: float [N], 0 to 24; NaN where it is not known.

    Returns:
        float32 [N, 4]; both numbers of what is not known are 0.
    """
    angles = torch.stack([2 * math.pi * month.double() / 12, 2 * math.pi * hour.double() / 24], dim=-1)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).nan_to_num(0.0).flatten(-2).float()


def encode_place(latitude: Tensor, longitude: Tensor) -> Tensor:
    """``[cos phi cos lam, cos phi sin lam, sin phi]``, a point on the unit sphere (arXiv 2203.02751, released code).

    A latitude or longitude of exactly 0 counts as missing there, by mistake; here it is a place like any other.

    Args:
        latitude: phi in degrees, float [N]; NaN where it is not known.
        longitude: lam in degrees, float [N]; NaN where it is not known.

    Returns:
        float32 [N, 3]; zeros where either is not known.
    """
    phi, lam = latitude.double().deg2rad(), longitude.double().deg2rad()
    place = torch.stack([phi.cos() * lam.cos(), phi.cos() * lam.sin(), phi.sin()], dim=-1)
    return torch.where((phi + lam).isnan()[:, None], 0.0, place).float()


def mask_meta(meta: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Forget all that is known of ``floor(B share)`` samples, drawn at random (arXiv 2203.02751, released code).

    Args:
        meta: [B, M].
        share: in [0, 1].
        generator: draws which; on the CPU.

    Returns:
        [B, M], zeros in the rows that were drawn.
    """
    # 50 times a share that should be 0.58 is 28.999999999999996.
    count = int(len(meta) * share + 1e-9)
    forgotten = torch.randperm(len(meta), generator=generator)[:count].to(meta.device)
    return meta.index_fill(0, forgotten, 0.0)
