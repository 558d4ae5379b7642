"""Global contrast normalisation and ZCA whitening as the first part of a network."""

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.models.build import build_inner
from limbeck.models.classifier import Classifier, ImageTask
from limbeck.models.precision import keep_dtype


class Whitening(nn.Module):
    """Each image without its mean and at one length, then without the correlations between pixels of many images.

    Of an image x of D values (channels and pixels together), in float32 under every precision,

        g = s (x - mean(x)) / |x - mean(x)|,      y = (g - m) U diag(S + r)^(-1/2) U^T,

    where m is the mean and U diag(S) U^T the covariance (over N - 1) of the g of other images: a covariance S becomes
    S / (S + r). An image without contrast is 0 before m is taken off. Before :meth:`fit` m is 0, and the matrix that of
    images without any covariance.

    Source: the pre-processing of WAD (arXiv 2308.11874) as its released code has it, s = 55 and r = 0.1.

    Args:
        size: D.
        scale: s, which the ridge r is relative to.
        ridge: r > 0.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, size: int, scale: float = 55.0, ridge: float = 0.1) -> None:
        super().__init__()
        if not scale > 0 or not ridge > 0:
            raise LimbeckError(f"whitening has scale {scale} and ridge {ridge}; both must be above 0")
        self.scale, self.ridge = scale, ridge
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("matrix", torch.eye(size) / ridge**0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W], whitened."""
        with torch.autocast(images.device.type, enabled=False):
            rows = (self.contrast(images.float()) - self.mean) @ self.matrix
        return rows.view_as(images).to(images.dtype)

    def contrast(self, images: Tensor) -> Tensor:
        """Contrast-normalised images [B, C, H, W], as rows [B, D]."""
        rows = images.flatten(1)
        rows = rows - rows.mean(1, keepdim=True)
        norms = rows.norm(dim=1, keepdim=True)
        return self.scale * rows / norms.where(norms > 1e-6, 1)

    @torch.no_grad()
    def fit(self, parts: Iterable[Tensor]) -> None:
        """Take mean and covariance, in float64, of images that come in ``parts`` [B, C, H, W].

        Raises:
            LimbeckError: fewer than two images.
        """
        count, total = 0, torch.zeros(len(self.mean), dtype=torch.float64)
        products = torch.zeros(len(total), len(total), dtype=torch.float64)
        for images in parts:
            rows = self.contrast(images.double())
            count, total = count + len(rows), total + rows.sum(0)
            products.addmm_(rows.T, rows)
        if count < 2:
            raise LimbeckError(f"whitening needs at least two images to learn from, and there are {count}")
        mean = total / count
        covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
        values, vectors = torch.linalg.eigh(covariance)
        self.mean.copy_(mean)
        self.matrix.copy_(vectors * (values.clamp(min=0) + self.ridge).rsqrt() @ vectors.T)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_dtype(function), recurse)


def with_whitening(model: Classifier, images: Iterable[Tensor], scale: float = 55.0, ridge: float = 0.1) -> Classifier:
    """A classifier that whitens images as of ``images``, in the place of standardising their channels.

    Args:
        model: with an image size; not copied, and without pre-processing of its own from then on.
        images: float [B, 1 | 3, H, W] in [0, 1], in parts.
        scale: see :class:`Whitening`.
        ridge: see :class:`Whitening`.

    Raises:
        LimbeckError: the classifier takes images of any size, or fewer than two images.
    """
    made = _whitened(model, scale, ridge)
    assert isinstance(made.body, nn.Sequential)
    first = made.body[0]
    assert isinstance(first, Whitening)
    first.fit(made.inputs(part)[0] for part in images)
    return made


def whitened(task: ImageTask, *, model: dict[str, Any], scale: float = 55.0, ridge: float = 0.1) -> Classifier:
    """A network with global contrast normalisation and ZCA before it, which has learnt nothing of images yet.

    Args:
        task: Classes and images.
        model: The network, a model block such as {name: cnn, width: 16}.
        scale: Length of an image after its contrast is normalised.
        ridge: Added to all variances.

    Raises:
        LimbeckError: the model is not one of limbeck's builders, or numbers that are not positive.
    """
    return _whitened(build_inner(model, task, "whitened"), scale, ridge)


def _whitened(model: Classifier, scale: float, ridge: float) -> Classifier:
    if model.size is None:
        raise LimbeckError("whitening needs images of one size: give the classifier a size")
    inner = None if model.factory is None else {"name": model.factory, **model.arguments}
    model.set_preprocessing(channels=model.channels, size=model.size, mean=None, std=None)
    height, width = model.size
    made = Classifier(
        nn.Sequential(Whitening(model.channels * height * width, scale, ridge), model),
        model.classes,
        channels=model.channels,
        size=model.size,
        head=None if model.head is None else f"1.body.{model.head}".rstrip("."),
    )
    if inner is not None:
        made.factory, made.arguments = "whitened", {"model": inner, "scale": scale, "ridge": ridge}
    return made
