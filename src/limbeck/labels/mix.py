"""Images and their labels mixed in pairs within a batch."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.types import Labels, TopK


def mixup(
    images: Float[Tensor, "batch channels height width"],
    labels: Labels,
    num_classes: int,
    alpha: float | int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "batch channels height width"], Labels]:
    """Mixup (arXiv 1710.09412, equation 2): ``lam x_i + (1 - lam) x_j`` with lam ~ Beta(alpha, alpha).

    One lam a batch and j from a permutation of it, as in the released code. Labels are mixed so that
    the weighted cross-entropy of the result is ``lam w_i CE(y_i) + (1 - lam) w_j CE(y_j)``.

    Args:
        images: [B, C, H, W].
        labels: one label an image, [B], of any kind; indices and top k become probabilities.
        num_classes: number of classes (not read for real values).
        alpha: > 0.
        generator: draws lam and the permutation; no other random state is touched.

    Raises:
        LimbeckError: alpha <= 0, or another number of labels than of images.
    """
    draw = _draw(images, labels, alpha, generator)
    mixed = draw.share * images + (1 - draw.share) * images[draw.partner]
    return mixed, _mix_labels(labels, num_classes, draw)


def cutmix(
    images: Float[Tensor, "batch channels height width"],
    labels: Labels,
    num_classes: int,
    alpha: float | int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "batch channels height width"], Labels]:
    """CutMix (arXiv 1905.04899, equations 1 and 2): a box of another image, labels by area.

    The box has sides ``sqrt(1 - lam)`` of the image's, lam ~ Beta(alpha, alpha), around a uniform centre; it
    is clipped at the border and lam becomes the fraction really left. Arguments, labels and errors as
    :func:`mixup`.
    """
    draw = _draw(images, labels, alpha, generator)
    height, width = images.shape[-2:]
    side = math.sqrt(1 - draw.share)
    y, x = torch.rand(2, generator=generator, device=generator.device).tolist()
    top, bottom = _interval(int(y * height), int(side * height), height)
    left, right = _interval(int(x * width), int(side * width), width)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[draw.partner, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, _mix_labels(labels, num_classes, _Draw(kept, draw.partner))


@dataclass(frozen=True)
class _Draw:
    share: float
    """Of the image itself, in [0, 1]; its partner has the rest."""
    partner: Tensor
    """int64 [B], a permutation."""


def _draw(images: Tensor, labels: Labels, alpha: float | int, generator: torch.Generator) -> _Draw:
    if not alpha > 0:
        raise LimbeckError(f"alpha is {alpha}, must be above 0")
    if labels.batch_shape != images.shape[:1]:
        raise LimbeckError(f"{len(images)} images have labels of shape {list(labels.batch_shape)}, must be one each")
    # torch's Beta takes no generator: it seeds numpy's.
    seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
    share = np.random.default_rng(int(seed)).beta(alpha, alpha)
    partner = torch.randperm(len(images), generator=generator, device=generator.device)
    return _Draw(float(share), partner.to(images.device))


def _mix_labels(labels: Labels, num_classes: int, draw: _Draw) -> Labels:
    values = isinstance(labels.target, Tensor) and labels.target.is_floating_point() and labels.target.ndim == 1
    target = labels.target if values else labels.probabilities(num_classes)
    assert not isinstance(target, TopK)
    own = draw.share * labels.weights
    other = (1 - draw.share) * labels.weights[draw.partner]
    weight = own + other
    # Shares of the mixed label; where both sides are out they do not matter and must not be NaN.
    share = torch.where(weight > 0, own / weight.where(weight > 0, 1.0), draw.share)
    share = share if values else share.unsqueeze(-1)
    classes = labels.classes
    if classes is not None and classes.ndim > 1:
        classes = classes | classes[draw.partner]
    mixed = share * target + (1 - share) * target[draw.partner]
    return Labels(mixed, None if labels.weight is None else weight, classes)


def _interval(centre: int, length: int, size: int) -> tuple[int, int]:
    return max(centre - length // 2, 0), min(centre + length // 2, size)
