"""First weights by the rule of a paper instead of a builder's own."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from limbeck.errors import LimbeckError
from limbeck.models.heads import ProjectionHead


def initialise(model: nn.Module, seed: int) -> None:
    """Draw all weights of a network anew, from a seed of their own.

    Convolutions and linear layers: normal, of variance 2 / fan_out (arXiv 1502.01852), biases 0; normalisation: scale
    1, shift 0, running statistics those of nothing seen (mean 0, variance 1); a
    :class:`~limbeck.models.heads.ProjectionHead` as it draws itself. Convolutions, normalisation and head are those of
    the released code of arXiv 2302.12091; linear layers inside an encoder, which its networks have not, are a choice.

    Args:
        model: changed in place.
        seed: equal seeds, equal weights; torch's global generator stays as it was.

    Raises:
        LimbeckError: another kind of module has weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        _draw(model, "")


def _draw(part: nn.Module, name: str) -> None:
    if isinstance(part, ProjectionHead | _NormBase | nn.GroupNorm | nn.LayerNorm):
        part.reset_parameters()
        return
    if isinstance(part, _ConvNd | nn.Linear):
        nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    elif next(part.parameters(recurse=False), None) is not None:
        raise LimbeckError(
            f"{name or 'the model'} ({type(part).__name__}) has weights that no rule is known for: use a network of "
            "convolutions, linear layers and normalisation"
        )
    for child_name, child in part.named_children():
        _draw(child, f"{name}.{child_name}".removeprefix("."))
