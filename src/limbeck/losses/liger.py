"""Liger's Triton kernels in the place of our chunks, where they are installed and compute just what is asked.

They are asked for a loss that is trained, on a CUDA device, outside ``torch.compile``, in float32 or half precision;
everything else is computed in PyTorch, with the same results up to rounding. ``pip install 'limbeck[liger]'``.
With ``TRITON_INTERPRET=1`` Triton computes on a CPU, slowly: that is how they are tested.
"""

import functools
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from limbeck.errors import LimbeckError
from limbeck.losses.divergence import forward_kl, generalized_jsd, reverse_kl

Layer: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]
"""Hidden states, weight and bias, as :class:`limbeck.losses.fused_linear.Projection` has them."""

_SINCE = (0, 8)
"""The first version whose functions take a precision for the sums over chunks."""


def divergence_sum(student: Layer, teacher: Layer, divergence: Callable[..., Any]) -> Tensor | None:
    """The sum over rows of a divergence between two output layers, scalar float32; None where the kernels have none.

    Args:
        student: hidden states [N, H], weight [C, H], no bias.
        teacher: hidden states [N, G], weight [C, G], no bias.
        divergence: see :func:`as_generalized_jsd`.
    """
    (hidden, weight, bias), (teacher_hidden, teacher_weight, teacher_bias) = student, teacher
    known = as_generalized_jsd(divergence)
    if known is None or weight is None or teacher_weight is None or bias is not None or teacher_bias is not None:
        return None
    if len(weight) != len(teacher_weight) or not applies(hidden, weight, teacher_hidden, teacher_weight):
        return None
    beta, temperature = known
    mean: Tensor = _functions().liger_fused_linear_jsd(
        hidden,
        weight,
        teacher_hidden,
        teacher_weight,
        jsd_beta=beta,
        temperature=temperature,
        accum_dtype=torch.float32,
    )
    return mean * len(hidden)


def cross_entropy_sum(student: Layer, labels: Tensor) -> Tensor | None:
    """The sum over rows of the cross-entropy of ``labels``, scalar; None where the kernels do not apply.

    Args:
        student: hidden states [N, H], weight [C, H], bias [C] or None.
        labels: int64 [N] in [0, C).

    Raises:
        LimbeckError: a label out of range, whose place in memory the kernel would read and write.
    """
    hidden, weight, bias = student
    if weight is None or not applies(hidden, weight, bias):
        return None
    outside = (labels < 0) | (labels >= len(weight))
    if outside.any():
        raise LimbeckError(f"label {int(labels[outside][0])} is out of range: there are {len(weight)} classes")
    total: Tensor = _functions().liger_fused_linear_cross_entropy(
        hidden, weight, labels, bias, reduction="sum", accum_dtype=torch.float32
    )
    return total


def applies(hidden: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels can work on these: plain tensors of one device and precision, and hidden states that learn.

    Of hidden states without gradient they would compute none for the output layer, and without any they would still
    do the work of it.
    """
    given = [hidden, *(tensor for tensor in others if tensor is not None)]
    return (
        _installed()
        and hidden.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and len(hidden) > 0
        and hidden.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and (hidden.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")
        and all(type(tensor) in (Tensor, Parameter) for tensor in given)  # no shards
        and all(tensor.is_contiguous() for tensor in given)  # gradients are scaled row by row of memory
        and all((tensor.device, tensor.dtype) == (hidden.device, hidden.dtype) for tensor in given)
    )


def as_generalized_jsd(divergence: Callable[..., Any]) -> tuple[float, float] | None:
    """Beta and temperature with which Liger's generalised Jensen-Shannon divergence is this one; None where it is not.

    Args:
        divergence: of :mod:`limbeck.losses.divergence`, or a ``functools.partial`` of one with options.
    """
    measure: Any = divergence
    options: dict[str, Any] = {}
    if isinstance(divergence, functools.partial) and not divergence.args:
        measure, options = divergence.func, dict(divergence.keywords)
    temperature = options.pop("temperature", 1.0)
    options.pop("tail", None)  # of a top k, which is none of the kernels' business
    if measure is generalized_jsd and options.pop("interpolation", "trl") == "trl":
        beta = options.pop("beta", 0.5)
    elif measure is forward_kl or measure is reverse_kl:
        beta = float(measure is reverse_kl)
    else:
        return None
    return (beta, temperature) if 0 <= beta <= 1 and temperature > 0 and not options else None


@functools.cache
def _installed() -> bool:
    try:
        found = version("liger-kernel")
        version("triton")
    except PackageNotFoundError:
        return False
    return tuple(int(part) for part in found.split(".")[:2]) >= _SINCE


@functools.cache
def _functions() -> Any:
    import liger_kernel.transformers.functional as functions

    return functions
