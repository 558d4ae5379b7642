"""Images that a network finds natural: its batch normalisation's statistics matched, and priors on pixels."""

from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.errors import LimbeckError
from limbeck.losses.reduction import in_full


def norm(values: Float[Tensor, "*batch entries"]) -> Float[Tensor, "*batch"]:
    """Euclidean norm over the last dimension, whose gradient at zero is zero and not NaN."""
    squares = in_full(values).square().sum(-1)
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


def statistics_distance(
    values: Float[Tensor, "batch channels *space"],
    mean: Float[Tensor, " channels"],
    variance: Float[Tensor, " channels"],
) -> Float[Tensor, ""]:
    """``||mu(x) - mean||_2 + ||var(x) - variance||_2`` (arXiv 2306.13092, the regulariser of recovery).

    Norms over channels, not squared; the mean and the biased variance of ``values`` over batch and space. Half
    precision is computed in float32.

    Args:
        values: the input of a normalisation layer, [B, C, ...].
        mean: the layer's running mean, [C].
        variance: the layer's running variance, [C].
    """
    flat = in_full(values).transpose(0, 1).flatten(1)
    return norm(flat.mean(1) - mean) + norm(flat.var(1, correction=0) - variance)


class StatisticsMatching:
    """Watches the batch normalisation layers of a network while entered; leaves no hook behind.

    ``R_BN = sum_l rho_l (||mu_l - running mean_l||_2 + ||var_l - running variance_l||_2)`` over the inputs of the
    layers in the last forward pass, in which the network must be in eval mode (arXiv 2306.13092; the weight of
    the first layer as in its released code).

        with StatisticsMatching(model) as matching:
            logits = model(images)
            loss = cross_entropy(logits, labels) + 0.01 * matching.distance()

    Args:
        model: a network with batch normalisation.
        first: rho of the first layer; all others have 1.

    Raises:
        LimbeckError: no layer of the network keeps running statistics.
    """

    def __init__(self, model: nn.Module, first: float | int = 10.0) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        if not self.layers:
            raise LimbeckError(
                f"{type(model).__name__} has no batch normalisation with running statistics, which is what images are "
                "recovered from: take another network, such as cnn (norm: batch) or resnet"
            )
        self.first = first
        self.terms: list[Tensor] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> "StatisticsMatching":
        """Begin to watch."""
        self._hooks = [layer.register_forward_pre_hook(self._look) for layer in self.layers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take every hook away: they would pile up from image to image."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.terms = [], []

    def distance(self) -> Float[Tensor, ""]:
        """R_BN of the forward passes since the last call, scalar.

        Raises:
            LimbeckError: nothing was passed through the network.
        """
        if not self.terms:
            raise LimbeckError("no forward pass since statistics were last asked for: call the model first")
        total = torch.stack(self.terms).sum()
        self.terms = []
        return total

    def _look(self, layer: _BatchNorm, inputs: tuple[Any, ...]) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        weight = self.first if layer is self.layers[0] else 1.0
        self.terms.append(weight * statistics_distance(inputs[0], layer.running_mean, layer.running_var))


def image_variation(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, ""]:
    """Total variation: the norms of differences between neighbours in four directions, mean over the images.

    Horizontal, vertical and both diagonals, as in the priors of SRe2L's released code (from memory of it; there the
    norm is over the whole batch, here of each image, so that the batch size does not matter).

    Args:
        images: [B, C, H, W].
    """
    x = in_full(images)
    differences = (
        x[..., :, :-1] - x[..., :, 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., :-1, :-1] - x[..., 1:, 1:],
        x[..., :-1, 1:] - x[..., 1:, :-1],
    )
    return torch.stack([norm(difference.flatten(1)) for difference in differences]).sum(0).mean()


def image_norm(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, ""]:
    """Euclidean norm of each image, mean over the images; their number is the real one, also of a short batch.

    Args:
        images: [B, C, H, W].
    """
    return norm(images.flatten(1)).mean()
