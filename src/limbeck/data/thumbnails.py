"""Images so small that near-duplicates can be found by comparing all with all."""

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.data.samples import Samples
from limbeck.data.stream import eval_batches


def thumbnails(samples: Samples, side: int = 16) -> Tensor:
    """Grey values of each image on a grid, less their mean: float32 [N, D], D at most ``side * side``.

    Cosines between them do not change with brightness and contrast.

    Args:
        samples: the images.
        side: fields of the grid in each direction; as many as there are pixels where there are fewer.
    """
    grid = (min(side, samples.shape[1]), min(side, samples.shape[2]))
    parts = []
    for batch in eval_batches(samples, 1024):
        grey = batch["image"].mean(dim=1, keepdim=True)
        parts.append(F.adaptive_avg_pool2d(grey, grid).flatten(1))
    fields = torch.cat(parts)
    return fields - fields.mean(dim=1, keepdim=True)
