"""Images and their labels mixed in pairs within a batch."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.labels.mix_rows import Draw, draw_cutmix, draw_mixup
from limbeck.labels.types import Labels, TopK


def mixup(
    images: Float[Tensor, "batch channels height width"],
    labels: Labels,
    num_classes: int,
    alpha: float | int,
    generator: torch.Generator,
    group: int = 0,
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
        group: partners come from the same group of so many neighbours (SelfMix, arXiv 2312.17473); 0: from the batch.

    Raises:
        LimbeckError: alpha <= 0, another number of labels than of images, or a batch that is not made of whole groups.
    """
    draw = _on(images, draw_mixup(_count(images, labels), alpha, generator, group))
    mixed = draw.share * images + (1 - draw.share) * images[draw.partner]
    return mixed, _mix_labels(labels, num_classes, draw)


def cutmix(
    images: Float[Tensor, "batch channels height width"],
    labels: Labels,
    num_classes: int,
    alpha: float | int,
    generator: torch.Generator,
    group: int = 0,
) -> tuple[Float[Tensor, "batch channels height width"], Labels]:
    """CutMix (arXiv 1905.04899, equations 1 and 2): a box of another image, labels by area.

    The box has sides ``sqrt(1 - lam)`` of the image's, lam ~ Beta(alpha, alpha), around a uniform centre; it
    is clipped at the border and lam becomes the fraction really left. Arguments, labels and errors as
    :func:`mixup`.
    """
    size = (images.shape[2], images.shape[3])
    draw = _on(images, draw_cutmix(_count(images, labels), size, alpha, generator, group))
    top, bottom, left, right = draw.box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[draw.partner, :, top:bottom, left:right]
    return mixed, _mix_labels(labels, num_classes, draw)


def mixup_or_cutmix(
    images: Float[Tensor, "batch channels height width"],
    labels: Labels,
    num_classes: int,
    mixup_alpha: float | int,
    cutmix_alpha: float | int,
    generator: torch.Generator,
    group: int = 0,
) -> tuple[Float[Tensor, "batch channels height width"], Labels]:
    """Either of the two in half of the batches, as in the training of DeiT (arXiv 2012.12877, table 9).

    Args:
        images: see :func:`mixup`, as all but the alphas.
        labels: one label an image.
        num_classes: number of classes.
        mixup_alpha: of mixup; 0: always CutMix, or nothing where both are 0.
        cutmix_alpha: of CutMix; 0: always mixup.
        generator: draws which, and what that draws.
        group: see :func:`mixup`.

    Raises:
        LimbeckError: as of :func:`mixup`.
    """
    if not mixup_alpha and not cutmix_alpha:
        return images, labels
    first = bool(torch.rand((), generator=generator, device=generator.device) < 0.5)
    if not cutmix_alpha or (first and mixup_alpha):
        return mixup(images, labels, num_classes, mixup_alpha, generator, group)
    return cutmix(images, labels, num_classes, cutmix_alpha, generator, group)


def _count(images: Tensor, labels: Labels) -> int:
    if labels.batch_shape != images.shape[:1]:
        raise LimbeckError(f"{len(images)} images have labels of shape {list(labels.batch_shape)}, must be one each")
    return len(images)


def _on(images: Tensor, draw: Draw) -> Draw:
    return replace(draw, partner=draw.partner.to(images.device))


def _mix_labels(labels: Labels, num_classes: int, draw: Draw) -> Labels:
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


def cutmix_pixels(
    images: Float[Tensor, "batch channels height width"],
    labels: Labels,
    generator: torch.Generator,
    share: float | int = 0.5,
) -> tuple[Float[Tensor, "batch channels height width"], Labels]:
    """CutMix with one label a pixel: each image gets a box of the next one, with the labels inside.

    Image i takes a box from image i + 1 (the last from the first) that holds ``share`` of the area; its aspect
    ratio and its place are drawn for each image.

    Args:
        images: [B, C, H, W].
        labels: one a pixel, [B, H, W]: class indices or probabilities.
        generator: draws the boxes; no other random state is touched.
        share: part of the image that the box covers, in (0, 1], to the nearest whole sides.

    Raises:
        LimbeckError: share out of range, labels that are not one a pixel, or a top k.
    """
    if not 0 < share <= 1:
        raise LimbeckError(f"share is {share}, must be above 0 and at most 1")
    _check_pixels(images, labels)
    count, (height, width) = len(images), images.shape[-2:]
    draws = torch.rand(3, count, generator=generator, device=generator.device).to(images.device)
    # Log-uniform sides: both lie between share and 1 of the image's.
    high = (height * share ** draws[0]).round().clamp(1, height)
    wide = (width * share ** (1 - draws[0])).round().clamp(1, width)
    top = (draws[1] * (height - high + 1)).floor()
    left = (draws[2] * (width - wide + 1)).floor()
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    inside_rows = (rows >= top[:, None]) & (rows < (top + high)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    region = inside_rows[:, :, None] & inside_columns[:, None, :]
    following = Labels(
        _plain_target(labels).roll(-1, 0), None if labels.weight is None else labels.weight.roll(-1, 0), labels.classes
    )
    return paste(images, labels, images.roll(-1, 0), following, region)


def classmix(
    images: Float[Tensor, "batch channels height width"],
    labels: Labels,
    others: Float[Tensor, "batch channels height width"],
    other_labels: Labels,
    num_classes: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "batch channels height width"], Labels]:
    """ClassMix (arXiv 2007.07936, section 3.1): half of the other image's classes are pasted onto each image.

    Of the classes that occur in ``other_labels`` (weight not 0) half are drawn for each image, rounded up, and their
    pixels pasted with their labels.

    Args:
        images: what is pasted onto, [B, C, H, W].
        labels: their labels, one a pixel, [B, H, W].
        others: what is cut out of, [B, C, H, W].
        other_labels: class indices, [B, H, W], along which it is cut.
        num_classes: number of classes.
        generator: draws the classes; no other random state is touched.

    Raises:
        LimbeckError: other_labels are not class indices, or labels are not one a pixel.
    """
    truth = _plain_target(other_labels)
    if truth.is_floating_point():
        raise LimbeckError("classmix cuts along class indices [B, H, W]; take the predicted() classes of the labels")
    _check_pixels(images, labels)
    _check_pixels(others, other_labels)
    known = (truth >= 0) & (other_labels.weights != 0)
    index = truth.clamp(min=0)
    there = torch.zeros(len(truth), num_classes, dtype=torch.int64, device=truth.device)
    there = there.scatter_add(1, index.flatten(1), known.flatten(1).long()) > 0
    draws = torch.rand(len(truth), num_classes, generator=generator, device=generator.device).to(truth.device)
    rank = draws.masked_fill(~there, 2.0).argsort(1).argsort(1)
    chosen = there & (rank < (there.sum(1, keepdim=True) + 1) // 2)
    region = known & chosen.gather(1, index.flatten(1)).view_as(known)
    return paste(images, labels, others, other_labels, region)


def paste(
    images: Float[Tensor, "batch channels height width"],
    labels: Labels,
    others: Float[Tensor, "batch channels height width"],
    other_labels: Labels,
    region: Bool[Tensor, "batch height width"],
) -> tuple[Float[Tensor, "batch channels height width"], Labels]:
    """The other image and its labels, with their weights, where ``region`` is True.

    Args:
        images: [B, C, H, W].
        labels: one a pixel, [B, H, W]: class indices or probabilities.
        others: [B, C, H, W].
        other_labels: of the same kind as ``labels``.
        region: [B, H, W].

    Raises:
        LimbeckError: labels of different kinds, not one a pixel, or a top k.
    """
    _check_pixels(images, labels)
    _check_pixels(others, other_labels)
    own, other = _plain_target(labels), _plain_target(other_labels)
    if own.is_floating_point() != other.is_floating_point() or own.shape != other.shape:
        raise LimbeckError("both labels must be class indices, or both probabilities of the same classes")
    inside = region.unsqueeze(-1) if own.ndim > region.ndim else region
    target = torch.where(inside, other, own)
    weighted = labels.weight is not None or other_labels.weight is not None
    weight = torch.where(region, other_labels.weights, labels.weights) if weighted else None
    return torch.where(region.unsqueeze(1), others, images), Labels(target, weight, labels.classes)


def _plain_target(labels: Labels) -> Tensor:
    if isinstance(labels.target, TopK):
        raise LimbeckError("pixels are mixed with class indices or probabilities, not with a top k")
    return labels.target


def _check_pixels(images: Tensor, labels: Labels) -> None:
    _plain_target(labels)
    wanted = [len(images), *images.shape[-2:]]
    if list(labels.batch_shape) != wanted:
        raise LimbeckError(f"labels have shape {list(labels.batch_shape)}, must be one a pixel: {wanted}")
