"""Mean and standard deviation of the channels of images."""

from collections.abc import Iterable

import torch
from torch import Tensor

from limbeck.data.pixels import Images, Lazy


def channel_statistics(parts: Iterable[tuple[Images, Tensor]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of some images.

    Of images that would have to be decoded for it evenly spaced ones are looked at, up to 20,000 a part.

    Args:
        parts: images and which of their rows, int64 [N]; at least one image altogether.

    Returns:
        One number a channel each, rounded to six digits; a channel without any spread has the deviation 1.
    """
    count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for images, rows in parts:
        step = max(1, len(rows) // 10_000) if isinstance(images, Lazy) else 1
        for some in rows[::step].split(1024):
            pixels = images.take(some).double()
            total = total + pixels.sum((0, 2, 3))
            squares = squares + pixels.square().sum((0, 2, 3))
            count += pixels.numel() // images.shape[0]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std < 1e-6, torch.ones_like(std), std)  # constant images: leave their scale alone
    # Six digits: the last ones depend on the number of threads.
    return tuple(round(value, 6) for value in mean.tolist()), tuple(round(value, 6) for value in std.tolist())
