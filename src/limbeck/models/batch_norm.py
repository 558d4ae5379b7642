"""Batch normalisation at test time: by the statistics of the test batch."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.errors import LimbeckError

M = TypeVar("M", bound=nn.Module)


def use_batch_statistics(model: M, prior: int = 0) -> M:
    """Let every batch normalisation of a model use the statistics of the batch, in eval mode too; in place.

    With ``prior = 0`` the running statistics are removed. With ``prior = N`` they count as N samples beside the n
    of the batch (Schneider et al., arXiv 2006.16971, section 2):

        mean = N / (N + n) mean_source + n / (N + n) mean_batch, and the variances likewise.

    Args:
        model: changed in place; :func:`running_statistics_of` undoes it.
        prior: N >= 0.

    Raises:
        LimbeckError: the model has no batch normalisation with running statistics, or a negative prior.
    """
    if prior < 0:
        raise LimbeckError(f"prior is {prior}; it must be a number of samples from 0 on")
    layers = batch_norms(model)
    if not layers:
        raise LimbeckError(
            f"{type(model).__name__} has no batch normalisation with running statistics: there is nothing that "
            "batch statistics could replace; take a model with it, such as {name: cnn, norm: batch}"
        )
    if prior == 0:
        for layer in layers.values():
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        return model
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _MixedStatistics(layer, prior))
    return model


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Within it every batch normalisation uses the statistics of its batch and leaves the running ones alone.

    Everything else (dropout) keeps its mode.
    """
    layers = batch_norms(model).values()
    before = [(layer, layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer, training, tracks in before:
            layer.training, layer.track_running_stats = training, tracks


def running_statistics_of(source: M, model: nn.Module) -> M:
    """A copy of ``source``, its running statistics included, with the parameters of ``model``.

    What :func:`use_batch_statistics` took out of a model is back in the copy, so that it can be saved and loaded
    like any other.

    Args:
        source: the model before its batch normalisation was changed.
        model: has the same parameters.
    """
    restored = copy.deepcopy(source)
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in restored.named_parameters():
            weight.copy_(ours[name])
    return restored


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch normalisations that have running statistics, by their names."""
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


def affine_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Scale and shift of every batch normalisation, running statistics or not (Tent, arXiv 2006.10726).

    Raises:
        LimbeckError: there are none.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    found = [weight for layer in layers for weight in (layer.weight, layer.bias) if weight is not None]
    if not found:
        raise LimbeckError(f"{type(model).__name__} has no batch normalisation with scale and shift to train")
    return found


class _MixedStatistics(nn.Module):
    """A batch normalisation by the weighted mean of its source's and the batch's statistics."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: _BatchNorm, prior: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.prior = layer.weight, layer.bias, layer.eps, prior
        self.register_buffer("running_mean", layer.running_mean)
        self.register_buffer("running_var", layer.running_var)

    def forward(self, inputs: Tensor) -> Tensor:
        axes = [axis for axis in range(inputs.ndim) if axis != 1]
        # Like the layer itself, the batch's variance divides by the number of values.
        variance, mean = torch.var_mean(inputs.float(), dim=axes, correction=0)
        share = self.prior / (self.prior + len(inputs))
        mean = torch.lerp(mean, self.running_mean, share)
        variance = torch.lerp(variance, self.running_var, share)
        return F.batch_norm(inputs, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
